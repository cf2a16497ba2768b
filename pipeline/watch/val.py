"""What a model in training is measured by beside its training: the problems of val, and answers of
the model that it started from.

Nothing here leaves a trace in the training: the model is put back as it was, what is drawn has
random streams of its own, and the weights after training are the same bits with and without.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.common.errors import UserError
from data.common.files import read_jsonl, write_jsonl
from data.common.seeds import seed_of
from data.recipe import Recipe
from data.rows import read_split
from rewards.reward import totals
from rewards.verify import VALID, Status, verify

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase, Trainer

    from pipeline.model.decode import Sample

#: Below a stage's checkpoints: the answers of the start that ``kl_start`` is measured on.
START = "start.jsonl"
#: Logits that are held at a time when texts are scored; 0.25 GiB of float32.
_LOGITS = 2**26


@dataclass(frozen=True)
class Encoded:
    """A prompt and an answer to it, in tokens."""

    prompt: list[int]
    answer: list[int]


def val_rows(recipe: Recipe, arm: str) -> list[dict[str, Any]]:
    """The ``monitor.problems`` of val that a training is measured by, always the same ones: evenly
    from the arm's tiers, or from all where those have none."""
    tiers = recipe.all_arms[arm].tiers
    rows = read_split(recipe.run, "val")
    rows = [row for row in rows if not tiers or row["tier"] in tiers] or rows
    count = min(recipe.monitor.problems, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


class Yardsticks:
    """Measures the model of one trainer. Only where it is held whole, and in the main process.

    Args:
        recipe: as it stands for the arm.
        kind: the recipe's section, ``sft`` or ``grpo``.
        rows: of ``val_rows``.
        folder: where the start's answers are kept for a training that goes on.
        generates: draw with the trainer's own way of generating, which Unsloth's kernels need, in
            place of ``pipeline.model.decode``.
    """

    def __init__(
        self,
        recipe: Recipe,
        kind: str,
        trainer: Trainer,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[dict[str, Any]],
        folder: Path,
        generates: bool = False,
    ) -> None:
        from pipeline.model.decode import answer_limit, reasoning_prefix, render

        self.recipe, self.trainer, self.tokenizer, self.rows = recipe, trainer, tokenizer, rows
        self.generates = generates
        self.prefix = reasoning_prefix(tokenizer)
        self.prompts = [render(tokenizer, row["prompt"]) for row in rows]
        self.limit = (  # training's, where it draws
            getattr(trainer.args, "max_completion_length", None)
            or recipe.grpo.get("max_completion_length")
            or recipe.eval.max_tokens
            or answer_limit(tokenizer, rows)
        )
        self.golds, self.sampled = kind == "sft", kind in recipe.monitor.sampled
        args = trainer.args
        # As many at a time as the training draws, which there is memory for.
        together = args.per_device_train_batch_size * (
            getattr(args, "steps_per_generation", 0) or 0
        )
        self.together = min(recipe.eval.rows, together or recipe.eval.rows)
        self.path = folder / START
        self.start: list[tuple[Encoded, list[float]]] = []

    def begin(self, fresh: bool) -> dict[str, float]:
        """Before the first step: val of the start, and its answers, scored by itself. A training
        that goes on takes the answers that were kept; without them, or where they are spoilt,
        there is no KL."""
        if fresh and not self.sampled:
            return self.val()
        if not fresh:
            if self.path.is_file():
                model = self.trainer.accelerator.unwrap_model(self.trainer.model)
                try:
                    found = _read_start(self.path, model.config.get_text_config().vocab_size)
                    self.start = list(found)
                except UserError as error:
                    print(f"{error}: kl_start is not measured from here on", flush=True)
            return {}
        with undisturbed(self.trainer) as model:
            drawn = self._draw(model)
            # At temperature 1, as it must be: they stand for what the start would answer.
            texts = [
                self._encoded(prompt, *group[:1])
                for prompt, group in zip(self.prompts, drawn, strict=True)
            ]
            self.start = [
                (text, found.tolist())
                for text, found in zip(texts, scores(model, texts), strict=True)
            ]
            found = self._val(model, drawn)
        write_jsonl(
            self.path,
            (
                {"prompt": text.prompt, "answer": text.answer, "scores": found}
                for text, found in self.start
            ),
        )
        return found

    def val(self) -> dict[str, float]:
        """``val/optimal``, ``val/feasible`` (shares of the answers) and ``val/reward`` (their mean
        under the recipe's reward) of ``monitor.samples`` answers to each problem, at temperature 1,
        always with the same random numbers, in the stages of ``monitor.sampled``, and
        ``val/entropy``, the mean negative log-probability of their tokens in nats, which is what
        the entropy of a token is on average; in SFT ``val/loss``, the same of the gold answers.
        The ends of answers count."""
        with undisturbed(self.trainer) as model:
            return self._val(model, self._draw(model) if self.sampled else None)

    def _val(self, model: Any, drawn: Sequence[Sequence[Sample]] | None) -> dict[str, float]:
        found = {}
        if drawn is not None:
            found = self._judged(drawn)
            texts = [
                self._encoded(prompt, one)
                for prompt, group in zip(self.prompts, drawn, strict=True)
                for one in group
            ]
            found["val/entropy"] = _surprise(scores(model, texts))
        if self.golds:
            golds = [
                Encoded(self._ids(prompt), [*self._ids(row["gold"]), self.tokenizer.eos_token_id])
                for prompt, row in zip(self.prompts, self.rows, strict=True)
            ]
            found["val/loss"] = _surprise(scores(model, golds))
        return found

    def _judged(self, drawn: Sequence[Sequence[Sample]]) -> dict[str, float]:
        asked, texts, verdicts = [], [], []
        for row, group in zip(self.rows, drawn, strict=True):
            problem = json.dumps(row["problem"].to_json())
            for one in group:
                asked.append(problem)
                texts.append(self.prefix + one.completion)
                verdicts.append(verify(row["problem"], texts[-1]).status)
        paid = totals(self.recipe.reward, asked, texts)
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
            now = scores(model, [text for text, _ in self.start])
        before = [score for _, found in self.start for score in found]
        return {"kl_start": kl_from(before, [score for found in now for score in found.tolist()])}

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _encoded(self, prompt: str, sample: Sample) -> Encoded:
        end = [self.tokenizer.eos_token_id] if sample.finish_reason == "stop" else []
        return Encoded(self._ids(prompt), [*self._ids(sample.completion), *end])

    def _draw(self, model: Any) -> list[list[Sample]]:
        """``monitor.samples`` answers to each problem, at temperature 1."""
        from pipeline.model.decode import Decoding, sample

        count, decoding = self.recipe.monitor.samples, Decoding(self.limit)
        seeds = [seed_of(self.recipe.seed, "monitor", row["id"]) for row in self.rows]
        if self.generates:
            return generated(self.trainer, self.tokenizer, self.prompts, count, decoding, seeds[0])
        drawn = sample(model, self.tokenizer, self.prompts, count, decoding, seeds, self.together)
        return [group for _, group in sorted(drawn, key=lambda each: each[0])]


def _surprise(found: Iterable[torch.Tensor]) -> float:
    """The mean negative log-probability of all tokens."""
    each = [score for text in found for score in text.tolist()]
    return -sum(each) / max(1, len(each))


def _read_start(path: Path, vocabulary: int) -> Iterator[tuple[Encoded, list[float]]]:
    """The answers of the start that were kept, each with the log-probabilities of its tokens.

    Raises:
        UserError: naming the line that is not as it was written.
    """

    def are_tokens(value: Any) -> bool:
        return isinstance(value, list) and all(
            type(token) is int and 0 <= token < vocabulary for token in value
        )

    for number, row in read_jsonl(path):
        prompt, answer, known = (row.get(key) for key in ("prompt", "answer", "scores"))
        if not (
            are_tokens(prompt)
            and prompt
            and are_tokens(answer)
            and isinstance(known, list)
            and len(known) == len(answer)
            and all(type(score) is float and math.isfinite(score) for score in known)
        ):
            raise UserError(f"{path}:{number} is not as it was written")
        yield Encoded(prompt, answer), known


def kl_from(before: Sequence[float], now: Sequence[float]) -> float:
    """KL(now ‖ start) in nats a token: the mean of ``r ln r - (r - 1)``, r = p_now / p_start.

    The tokens were drawn from the start, after each beginning of its own answers; there
    ``E[r ln r] = KL(now ‖ start)`` and ``E[r - 1] = 0``, so this is unbiased and never below 0. It
    is Schulman's k3 (joschu.net/blog/kl-approx.html) turned round: k3 draws from the model now,
    which takes the start's weights at every step to score what was drawn, this one takes the
    start's scores of a few texts, once. Direction and unit are those of TRL's ``kl``; the prefixes
    are the start's and not the present model's.

    Args:
        before, now: log-probability of each token, under the start and under the model now.
    """
    logs = [late - early for early, late in zip(before, now, strict=True)]
    return sum(math.exp(log) * log - math.expm1(log) for log in logs) / max(1, len(logs))


@contextmanager
def undisturbed(trainer: Trainer) -> Iterator[Any]:
    """The trainer's model in eval mode; afterwards model and global random streams are as before.

    A model under mixed precision computes here as it does in training.
    """
    import torch

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


def scores(model: Any, texts: Sequence[Encoded]) -> list[torch.Tensor]:
    """The log-probability of each token of each answer, float32 on the CPU.

    Padded on the right, where a causal model does not look, so that no backend needs the mask.
    """
    import torch

    found: dict[int, torch.Tensor] = {}
    for batch in _batches(texts, model.config.get_text_config().vocab_size):
        longest = max(len(texts[i].prompt) + len(texts[i].answer) for i in batch)
        first = min(len(texts[i].prompt) for i in batch)
        ids, mask = torch.zeros(2, len(batch), longest, dtype=torch.long)
        for row, i in enumerate(batch):
            both = torch.tensor([*texts[i].prompt, *texts[i].answer])
            ids[row, : len(both)], mask[row, : len(both)] = both, 1
        ids, mask = ids.to(model.device), mask.to(model.device)
        kept = longest - first + 1
        logits = model(
            input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=kept
        ).logits[:, -kept:-1]
        each = torch.log_softmax(logits.float(), -1).gather(-1, ids[:, first:, None])[..., 0].cpu()
        for row, i in enumerate(batch):
            start = len(texts[i].prompt) - first
            found[i] = each[row, start : start + len(texts[i].answer)]
    return [found[i] for i in range(len(texts))]


def _batches(texts: Sequence[Encoded], vocabulary: int) -> Iterator[list[int]]:
    """Texts with prompts of like length together, few enough for their logits."""
    batch: list[int] = []
    for i in sorted(range(len(texts)), key=lambda i: len(texts[i].prompt)):
        longest = max(len(texts[j].prompt) + len(texts[j].answer) for j in [*batch, i])
        kept = longest - len(texts[batch[0] if batch else i].prompt) + 1
        if batch and kept * (len(batch) + 1) * vocabulary > _LOGITS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def generated(
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    samples: int,
    decoding: Any,
    seed: int,
) -> list[list[Sample]]:
    """Answers as a GRPO trainer draws them without vLLM, which goes with Unsloth's kernels too."""
    import torch
    from trl.models.utils import unwrap_model_for_generation

    from pipeline.model.decode import Sample, stop_tokens

    inputs = tokenizer(
        list(prompts), return_tensors="pt", padding=True, padding_side="left",
        add_special_tokens=False,
    )  # fmt: skip
    with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model:
        stops = stop_tokens(model, tokenizer).cpu()
        torch.manual_seed(seed)
        drawn = model.generate(
            input_ids=inputs["input_ids"].to(model.device),
            attention_mask=inputs["attention_mask"].to(model.device),
            do_sample=True, temperature=decoding.temperature, top_p=decoding.top_p, top_k=0,
            num_return_sequences=samples, max_new_tokens=decoding.max_tokens,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=stops.tolist(),
        )[:, inputs["input_ids"].shape[1] :].cpu()  # fmt: skip
    found = []
    for row in drawn:
        ends = torch.isin(row, stops).nonzero()[:, 0].tolist()
        end = ends[0] if ends else len(row)
        text = tokenizer.decode(row[:end], skip_special_tokens=True)
        found.append(Sample(text, "stop" if ends else "length", end + bool(ends)))
    return [found[i : i + samples] for i in range(0, len(found), samples)]
