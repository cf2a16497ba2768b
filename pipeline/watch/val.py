"""Yardsticks of a model in training: val problems, and answers of the model it started from.

Nothing here leaves a trace in the training: the model is put back as it was, draws have random
streams of their own, and the trained weights are the same bits with and without.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl.models.utils import unwrap_model_for_generation

from data.common.files import read_jsonl, write_jsonl
from data.common.seeds import seed_of
from data.recipe import Recipe
from data.rows import Row, read_split, retold
from data.run import START, Run
from pipeline.model.decode import (
    Decoding,
    Sample,
    as_samples,
    continued,
    reasoning_prefix,
    render,
    sample,
    stop_tokens,
)
from pipeline.model.sampler import ends_of, generation_config
from pipeline.model.score import Encoded, encode, log_probabilities
from rewards.parse import whole
from rewards.reward import totals
from rewards.verify import VALID, Status, verify


def val_rows(run: Run, tiers: Sequence[str], problems: int) -> list[Row]:
    """The val problems that a training is measured by, always the same ones: evenly from the arm's
    ``tiers``, or from all where those have none."""
    rows = read_split(run, "val")
    rows = [row for row in rows if not tiers or row["tier"] in tiers] or rows
    count = min(problems, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


class Yardsticks:
    """Measures the model of one trainer. Only where it is held whole, and in the main process.

    Args:
        recipe: as it stands for the arm.
        kind: the recipe's section, ``sft`` or ``grpo``.
        generates: draw with the trainer's own way of generating, which Unsloth's kernels need,
            instead of ``pipeline.model.decode``.
    """

    def __init__(
        self, trainer: Trainer, recipe: Recipe, arm: str, kind: str, generates: bool = False
    ) -> None:
        self.trainer, self.generates = trainer, generates
        self.tokenizer = tokenizer = cast(PreTrainedTokenizerBase, trainer.processing_class)
        self.seed, self.reward, self.samples = recipe.seed, recipe.reward, recipe.monitor.samples
        self.draws = kind == "grpo"
        entry = recipe.all_arms[arm]
        rows = val_rows(recipe.run, entry.tiers, recipe.monitor.problems)
        self.rows = rows if entry.reasoned is None else retold(rows, recipe.data)
        self.prefix = reasoning_prefix(tokenizer)
        self.prompts = [render(tokenizer, row["prompt"]) for row in self.rows]
        args: Any = trainer.args  # SFT's or GRPO's
        if self.draws:
            self.limit = args.max_completion_length
            # As many at a time as the training draws, which there is memory for.
            drawn = args.per_device_train_batch_size * args.steps_per_generation
            self.together = min(recipe.eval.rows, drawn)
        self.path = Path(args.output_dir) / START
        self.start: list[tuple[Encoded, list[float]]] = []

    def begin(self, fresh: bool) -> dict[str, float]:
        """Before the first step: val of the start, and its answers, scored by itself. A training
        that resumes takes the answers that were kept; without them there is no KL."""
        if not fresh:
            kept = read_jsonl(self.path) if self.path.is_file() else ()
            self.start = [
                (Encoded(tuple(row["prompt"]), tuple(row["answer"])), row["scores"])
                for _, row in kept
            ]
            return {}
        if not self.draws:
            return self.val()
        with undisturbed(self.trainer) as model:
            drawn = self._draw(model)
            # At temperature 1, as they stand for what the start would answer.
            texts = [self._encoded(i, group[0]) for i, group in enumerate(drawn)]
            self.start = list(zip(texts, log_probabilities(model, texts), strict=True))
            measured = self._val(model, drawn)
        write_jsonl(
            self.path,
            (
                {"prompt": text.prompt, "answer": text.answer, "scores": own}
                for text, own in self.start
            ),
        )
        return measured

    def val(self) -> dict[str, float]:
        """Measure the model on the val problems, always with the same random numbers.

        Returns:
            In GRPO of answers at temperature 1 ``val/optimal`` and ``val/feasible`` (shares of
            them), ``val/reward`` (their mean under the recipe's reward) and ``val/entropy`` (the
            mean negative log-probability of their tokens in nats, an estimate of the entropy of a
            token). In SFT ``val/loss``, the same of the gold answers. The ends of answers count.
        """
        with undisturbed(self.trainer) as model:
            if self.draws:
                return self._val(model, self._draw(model))
            golds = [Sample(continued(row["gold"], self.prefix), "stop", 0) for row in self.rows]
            return {"val/loss": self._surprise(model, [[gold] for gold in golds])}

    def _val(self, model: PreTrainedModel, drawn: Sequence[Sequence[Sample]]) -> dict[str, float]:
        return {**self._judged(drawn), "val/entropy": self._surprise(model, drawn)}

    def _surprise(self, model: PreTrainedModel, answers: Sequence[Sequence[Sample]]) -> float:
        """The mean negative log-probability of all tokens of answers to each problem."""
        texts = [self._encoded(i, one) for i, group in enumerate(answers) for one in group]
        scores = [score for text in log_probabilities(model, texts) for score in text]
        return -sum(scores) / max(1, len(scores))

    def _judged(self, drawn: Sequence[Sequence[Sample]]) -> dict[str, float]:
        asked, texts, verdicts = [], [], []
        for row, group in zip(self.rows, drawn, strict=True):
            problem = row["problem"].text
            for one in group:
                asked.append(problem)
                texts.append(whole(self.prefix + one.completion, one.finish_reason))
                verdicts.append(verify(row["problem"], texts[-1]).status)
        paid = totals(self.reward, asked, texts)
        return {
            "val/optimal": verdicts.count(Status.OPTIMAL) / len(verdicts),
            "val/feasible": sum(status in VALID for status in verdicts) / len(verdicts),
            "val/reward": sum(paid) / len(paid),
        }

    def kl(self) -> dict[str, float]:
        """``kl_start``, see ``kl_from``; nothing where the start is not known any more."""
        if not self.start:
            return {}
        with undisturbed(self.trainer) as model:
            now = log_probabilities(model, [text for text, _ in self.start])
        before = [score for _, own in self.start for score in own]
        return {"kl_start": kl_from(before, [score for each in now for score in each])}

    def _encoded(self, row: int, answer: Sample) -> Encoded:
        """The prompt of a row and an answer to it, with its end where it has one."""
        stopped = answer.finish_reason == "stop"
        return encode(self.tokenizer, self.prompts[row], answer.completion, stopped)

    def _draw(self, model: PreTrainedModel) -> list[list[Sample]]:
        """Answers to each problem, at temperature 1."""
        seeds = [seed_of(self.seed, "monitor", row["id"]) for row in self.rows]
        asked = self.prompts, self.samples, Decoding(self.limit)
        if self.generates:
            return generated(self.trainer, self.tokenizer, *asked, seeds[0])
        drawn = sample(model, self.tokenizer, *asked, seeds, self.together)
        return [group for _, group in sorted(drawn, key=lambda each: each[0])]


def kl_from(before: Sequence[float], now: Sequence[float]) -> float:
    """KL(now ‖ start) in nats a token: the mean of ``r ln r - (r - 1)``, r = p_now / p_start.

    The tokens were drawn from the start, after each prefix of its own answers; there
    ``E[r ln r] = KL(now ‖ start)`` and ``E[r - 1] = 0``, so this is unbiased and never below 0. It
    is Schulman's k3 (joschu.net/blog/kl-approx.html) turned round: k3 draws from the model now, and
    the start's weights must score these draws at every step; this one needs the start's scores of
    a few texts, once. Direction and unit are those of TRL's ``kl``, but with the start's prefixes.

    Args:
        before, now: log-probability of each token, under the start and under the model now.
    """
    logs = [late - early for early, late in zip(before, now, strict=True)]
    return sum(math.exp(log) * log - math.expm1(log) for log in logs) / max(1, len(logs))


@contextmanager
def undisturbed(trainer: Trainer) -> Iterator[Any]:
    """Yield the trainer's model in eval mode; afterwards it and the global random streams are as
    before. A model under mixed precision computes here as it does in training.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    modes = [(module, module.training) for module in model.modules()]
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    # Unsloth's forward may have been told to return hidden states in place of logits.
    told = os.environ.pop("UNSLOTH_RETURN_HIDDEN_STATES", None)
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            model.eval()
            yield model
    finally:
        for module, mode in modes:
            module.training = mode
        if told is not None:
            os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] = told


def generated(
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    samples: int,
    decoding: Decoding,
    seed: int,
) -> list[list[Sample]]:
    """Answers as a GRPO trainer draws them without vLLM, which suits Unsloth's kernels too."""
    texts = [prompt for prompt in prompts for _ in range(samples)]
    inputs = tokenizer(
        texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
    )
    with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model:
        stops = stop_tokens(model, tokenizer).cpu()
        torch.manual_seed(seed)
        drawn = model.generate(
            input_ids=inputs["input_ids"].to(model.device),
            attention_mask=inputs["attention_mask"].to(model.device),
            generation_config=generation_config(decoding, stops, tokenizer.pad_token_id),
        )[:, inputs["input_ids"].shape[1] :].cpu()
    return as_samples(tokenizer, (drawn, *ends_of(drawn, stops)), samples)
