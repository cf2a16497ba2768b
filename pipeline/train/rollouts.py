"""Our own sampler draws the answers of GRPO, by the trainer's public ``rollout_func``.

It reads each prompt once instead of once an answer, and drops finished rows
(``pipeline.model.sampler``). Answers come from the same distribution as by ``generate``; seeds are
drawn from torch's own stream, which checkpoints keep, so a resumed training draws the same ones.

With a ``sampling`` section it also chooses the problems: ``Dynamic``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from trl import GRPOConfig

from data.prompts import messages
from data.rows import Row
from data.sections import SamplingSection
from pipeline.health.signals import NO_SPREAD
from pipeline.model import processes
from pipeline.model.decode import render_turns, stop_tokens
from pipeline.model.decoding import Decoding
from pipeline.model.sampler import draw_batch
from pipeline.train.resume import at_generation
from rewards.reward import summed

#: Weight of a problem that taught nothing when it was asked last; 1 where it did.
LEAST = 0.25
#: Share of the last group in its tier's average.
_NEWEST = 1 / 16

#: Settings that its sampler knows nothing of, with the values that change nothing: those that
#: change which answers are drawn, and all.
_CHANGING: Mapping[str, tuple[object, ...]] = {
    "top_k": (None, 0),
    "min_p": (None, 0.0),
    "repetition_penalty": (1.0,),
    "generation_kwargs": (None, {}),
}
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    **_CHANGING,
    "cache_implementation": (None,),
    "use_vllm": (False,),
    "use_transformers_continuous_batching": (False,),
}

RollOut = Callable[[list[Any], Any], dict[str, Any]]


def hindrance(args: GRPOConfig) -> str | None:
    """Why the trainer has to draw by itself: a setting that our sampler does not have, or several
    processes. None where our sampler draws."""
    several = f"training in {processes.count()} processes" if processes.count() > 1 else None
    return next(iter(unlike(args, _NEUTRAL)), several)


def unlike(args: GRPOConfig, neutral: Mapping[str, tuple[object, ...]] = _CHANGING) -> list[str]:
    """The settings with which training draws other answers than our sampler."""
    return [f"grpo.{k}" for k, same in neutral.items() if getattr(args, k, same[0]) not in same]


def rollouts_for(
    args: GRPOConfig, sampling: SamplingSection | None = None, rows: Sequence[Row] = ()
) -> RollOut | None:
    """Our sampler as TRL's ``rollout_func``, on the problems of ``rows``; None where the trainer
    has to draw by itself."""
    if hindrance(args):
        return None
    return Dynamic(sampling, rows) if sampling else roll_out


def roll_out(prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
    """Draw one answer to each of ``prompts``, conversations of which each stands there as often as
    its group has answers."""
    args, tokenizer = trainer.args, trainer.processing_class
    model = trainer.accelerator.unwrap_model(trainer.model)
    training = model.training
    group = trainer.num_generations if training else trainer.num_generations_eval
    texts = [render_turns(tokenizer, prompt) for prompt in prompts[::group]]
    seeds = torch.randint(2**62, (len(texts),)).tolist()
    stops = stop_tokens(model, tokenizer)
    decoding = Decoding(args.max_completion_length, args.temperature, args.top_p)
    model.eval()
    try:
        tokens, lengths, _ = draw_batch(model, tokenizer, texts, group, seeds, stops, decoding)
    finally:
        model.train(training)
    asked = tokenizer(texts, add_special_tokens=False)["input_ids"]
    drawn = zip(tokens.tolist(), lengths.tolist(), strict=True)
    return {
        "prompt_ids": [ids for ids in asked for _ in range(group)],
        "completion_ids": [row[:length] for row, length in drawn],
        "logprobs": None,
    }


class Dynamic(TrainerCallback, ExportableState):
    """Chooses problems as a ``sampling`` section says, and ends the training at its ``answers``.

    Attributes:
        drawn, thrown_away: answers in the whole training so far.
        flat: by row id 1 where a problem's group was paid alike when it was asked last, else 0; by
            tier the average of its groups, which fades. Kept where ``by_success``.
    """

    def __init__(self, section: SamplingSection, rows: Sequence[Row]) -> None:
        self.section, self.rows = section, rows
        self.places = {row["prompt"]: place for place, row in enumerate(rows)}
        self.drawn = self.thrown_away = 0
        self.flat: dict[str, float] = {}
        self.trainer: Any = None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        kept = ("drawn", "thrown_away", "flat")
        return {"args": {}, "attributes": {key: getattr(self, key) for key in kept}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Go on from a checkpoint; have the schedule of the learning rate go by answers."""
        vars(self).update(state.stateful_callbacks[type(self).__name__]["attributes"])
        if most := self.section.answers:
            control.should_training_stop = self._is_spent(args)
            schedule = given["lr_scheduler"]
            schedule.lr_lambdas = [
                lambda _, rate=rate: rate(state.max_steps * self.drawn / most)
                for rate in getattr(schedule, "lr_lambdas", ())
            ]

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if self._is_spent(args) and at_generation(self.trainer):
            control.should_training_stop = control.should_log = True

    def _is_spent(self, args: Any) -> bool:
        """Whether one more generation would be more answers than are to be drawn."""
        most = self.section.answers
        return most is not None and self.drawn + args.generation_batch_size > most

    def __call__(self, prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        """As ``roll_out``, but to problems of our choice; their column ``problem`` takes the place
        of what TRL asked."""
        self.trainer, group = trainer, trainer.num_generations
        asked = [self.places[prompt[-1]["content"]] for prompt in prompts[::group]]
        if self.section.by_success:
            asked = self._choose(len(asked), ())
        groups = self._draw(asked, trainer)
        for _ in range(self.section.redraws):
            flat = [place for place, one in enumerate(groups) if one["alike"]]
            if self.section.answers:
                flat = flat[: (self.section.answers - self.drawn) // group]
            others = self._choose(len(flat), asked)
            asked += others
            for place, drawn in zip(flat, self._draw(others, trainer), strict=False):
                groups[place] = drawn
                self.thrown_away += group
        logged = trainer._metrics["train"]
        logged["sampling/drawn"], logged["sampling/thrown_away"] = [self.drawn], [self.thrown_away]
        keys = ("prompt_ids", "completion_ids", "problem")
        return {
            "logprobs": None,
            **{key: [row for one in groups for row in one[key]] for key in keys},
        }

    def _choose(self, count: int, asked: Sequence[int]) -> list[int]:
        """Places of up to ``count`` problems that are not among those ``asked``."""
        weights = torch.tensor(
            [
                max(LEAST, 1 - self.flat.get(row["id"], self.flat.get(row["tier"], 0.0)))
                for row in self.rows
            ]
        )
        weights[list(asked)] = 0
        count = min(count, int(weights.count_nonzero()))
        return torch.multinomial(weights, count).tolist() if count else []

    def _draw(self, asked: Sequence[int], trainer: Any) -> list[dict[str, Any]]:
        """A group of answers to each problem: columns as TRL has them, and whether all are paid
        ``alike``."""
        group = trainer.num_generations
        rows = [self.rows[place] for place in asked for _ in range(group)]
        if not rows:
            return []
        drawn = roll_out([messages(row["prompt"]) for row in rows], trainer)
        drawn["problem"] = [row["problem"].text for row in rows]
        answers = drawn["completion_ids"]
        texts = trainer.processing_class.batch_decode(answers, skip_special_tokens=True)
        paid = summed(
            [pay(texts, drawn["problem"], completion_ids=answers) for pay in trainer.reward_funcs],
            trainer.reward_weights.tolist(),
        )
        self.drawn += len(rows)
        groups = []
        for start in range(0, len(rows), group):
            part = slice(start, start + group)
            alike = max(paid[part]) - min(paid[part]) <= NO_SPREAD
            columns = {key: column[part] for key, column in drawn.items() if column}
            groups.append({**columns, "alike": alike})
            if self.section.by_success:
                tier = rows[start]["tier"]
                before = self.flat.get(tier, 0.0)
                self.flat[tier] = before + _NEWEST * (alike - before)
                self.flat[rows[start]["id"]] = float(alike)
        return groups
