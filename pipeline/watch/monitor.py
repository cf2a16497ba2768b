"""Watching a training: signals beside TRL's own, and the numbers that end it.

Wraps methods of one trainer instance, patched by Unsloth or not; TRL itself is not patched. Our
signals (docs/watching.md) stand beside TRL's before its reporters (``report_to``) run, so wandb,
trackio and tensorboard have them as ``log.jsonl`` has. A new one is added to a row in ``_log``, or
appended to ``_metrics`` where TRL is to log its mean.

A loss or gradient norm that is not finite ends the training before it reaches a weight, a weight
that is not finite before it is saved.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import get_total_norm
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback

from data.common.errors import UserError, going_on
from data.problem import problem_from_text
from data.recipe import Recipe
from data.sections import MonitorSection
from pipeline.health.signals import NO_SPREAD
from pipeline.model import processes
from pipeline.watch.drawn import EVERY, measure_surplus
from pipeline.watch.log import Log, Stopped
from pipeline.watch.val import Yardsticks
from rewards.claims import check_trace
from rewards.reward import text_of

#: Second names of signals: the truth is what the verdicts say, whatever the reward pays.
_TRUTH = {"rewards/optimal": "truth/optimal", "rewards/validity": "truth/feasible"}

#: Numbers that must be finite, by the key that a row has them under.
_FINITE = {
    "loss": "the loss",
    "grad_norm": "the gradient norm",
    "weight": "a weight",
    "probability": "the probability of a next token",
}
#: Ours by torch's words for a probability that cannot be drawn from. A GPU only says it stopped.
_NOT_DRAWN = {
    "probability tensor": f"{_FINITE['probability']} is not a finite number",
    "device-side assert": "the GPU stopped as it drew answers (device-side assert), as where a "
    "probability is not a finite number",
}


@contextmanager
def monitored(
    trainer: Trainer,
    recipe: Recipe,
    arm: str,
    kind: str,
    folder: Path,
    saved: Callable[[], Path | None],
    generates: bool = False,
) -> Iterator[None]:
    """Have ``trainer`` watched while it trains inside; afterwards it is as it was.

    Args:
        recipe: as it stands for the arm.
        kind: the recipe's section, ``sft`` or ``grpo``.
        folder: of the arm.
        saved: returns the last checkpoint that was written to its end.
        generates: see ``Yardsticks``; for a model with Unsloth's kernels.

    Raises:
        UserError: when a number is lost, or a finding is one that the recipe stops at.
    """
    trainer.remove_callback(PrinterCallback)
    _keep_reports(trainer, f"{recipe.run_name}-{arm}", folder)
    log = Log(folder, kind, recipe.monitor.stop, vars(trainer.args))
    sticks = None
    # One process cannot use a model alone whose weights several hold in parts.
    if processes.is_main() and not processes.cuts_weights():
        sticks = Yardsticks(trainer, recipe, arm, kind, generates)
    monitor = Monitor(trainer, recipe.monitor, kind, sticks)
    trainer.add_callback(log)
    trainer.add_callback(monitor)
    where = f"{recipe.path}: {arm}"
    settings = recipe.all_arms[arm].settings
    own = f"arms.{arm.partition('.')[0]}.settings" if "learning_rate" in settings else kind
    try:
        yield
    except Lost as lost:
        if processes.is_main():
            log.end(lost.step, {lost.signal: math.nan, "learning_rate": lost.rate}, str(lost))
        checkpoint = saved()
        without = "" if checkpoint is None else ", without that checkpoint (copy it, to keep it)"
        raise UserError(
            f"{where}: {lost} at step {lost.step}, and training ended before it reached "
            f"{lost.spared}; {_kept(trainer, checkpoint, kind)}; lower {own}.learning_rate "
            f"({trainer.args.learning_rate:g}), and the same command restarts{without}"
        ) from None
    except Stopped as stopped:
        symptom = stopped.finding.symptom
        raise UserError(
            f"{where}: ended by monitor.stop at step {trainer.state.global_step} ({symptom}); "
            f"{_kept(trainer, saved(), kind)}; without {symptom} in monitor.stop {going_on()}"
        ) from None
    finally:
        monitor.release()
        if (wandb := sys.modules.get("wandb")) and getattr(wandb, "run", None):
            wandb.finish()  # or the next arm would be reported as more of this one


def _keep_reports(trainer: Trainer, name: str, folder: Path) -> None:
    """Name the run for reporters, and have TensorBoard's files outlive the checkpoints, in
    ``tensorboard`` below ``folder``."""
    trainer.args.run_name = trainer.args.run_name or name
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(folder / "tensorboard")


def _kept(trainer: Trainer, checkpoint: Path | None, kind: str) -> str:
    if checkpoint is not None:
        return f"the weights of step {checkpoint.name.rpartition('-')[2]} are in {checkpoint}"
    if trainer.args.save_strategy == "steps":
        return f"nothing was saved yet (a smaller {kind}.save_steps saves sooner)"
    return f"nothing was saved yet ({kind}.save_strategy: steps saves sooner)"


class Lost(Exception):  # noqa: N818 - not an error of ours
    """A number that must be finite is not: ``signal`` in a row, at a step and learning rate of the
    training; it did not reach what is ``spared``."""

    def __init__(self, signal: str, text: str, step: int, rate: float, spared: str) -> None:
        super().__init__(text)
        self.signal, self.step, self.rate, self.spared = signal, step, rate, spared


class Monitor(TrainerCallback):
    """Adds our signals to a trainer's; raises Lost.

    Args:
        section: how often val and KL are measured.
        kind: ``sft`` or ``grpo``.
        sticks: None in a process that measures nothing.
    """

    def __init__(
        self, trainer: Trainer, section: MonitorSection, kind: str, sticks: Yardsticks | None
    ) -> None:
        self.trainer: Any = trainer  # TRL's trainers have attributes of their own
        self.sticks = sticks
        self.every, self.kl_every = section.every, section.kl_every
        self.spent: dict[str, float] = defaultdict(float)  # seconds by part, since the last row
        self.steps = 0  # since the last row
        self.scored = -1  # the step of which drawn answers were scored last
        self._held = ExitStack()
        self._wrap(trainer, "log", self._log)
        self._wrap(trainer, "training_step", self._training_step)
        self._wrap(trainer.accelerator, "clip_grad_norm_", self._clip)
        if kind == "grpo":
            self._wrap(trainer, "_generate_and_score_completions", self._scored)
            self._wrap(trainer, "_generate", self._generate)
            self._wrap(trainer, "_calculate_rewards", self._rewards)

    def _wrap(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        """Call ``wrapper(original, …)`` in place of a method of one object."""
        original = getattr(owner, name)

        def inner(*args: Any, **kwargs: Any) -> Any:
            return wrapper(original, *args, **kwargs)

        setattr(owner, name, inner)
        self._held.callback(delattr, owner, name)

    def release(self) -> None:
        """Give the trainer its own methods back."""
        self._held.close()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.logged = state.global_step
        if self.sticks and (self.every or self.kl_every):
            began = time.perf_counter()
            measured = self.sticks.begin(fresh=state.global_step == 0)
            if measured and self.every:
                self.trainer.log({**measured, "time/monitor": time.perf_counter() - began})

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.spent["step"] += time.perf_counter() - self._began
        self.steps += 1
        if not self._weights_are_finite():
            raise self._lost("weight", step=state.global_step, spared="a checkpoint")

    def _weights_are_finite(self) -> bool:
        """Of the trained weights; not checked where several processes hold them in parts."""
        if processes.cuts_weights():
            return True
        trained = [w for w in self.trainer.model.parameters() if w.requires_grad]
        return math.isfinite(get_total_norm(trained).item())

    def _timed(self, part: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        returned = call(*args, **kwargs)
        self.spent[part] += time.perf_counter() - began
        return returned

    def _generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            drawn = self._timed("generate", original, *args, **kwargs)
        except RuntimeError as error:  # of torch.multinomial
            for words, text in _NOT_DRAWN.items():
                if words in str(error):
                    raise self._lost("probability", text) from None
            raise
        except UserError:  # of our own sampler
            raise self._lost("probability") from None
        step = self.trainer.state.global_step
        if step % EVERY == 0 and step != self.scored and not processes.cuts_weights():
            self.scored = step
            prompts, answers = drawn[:2]
            found = self._timed("monitor", measure_surplus, self.trainer, prompts, answers)
            for signal, value in found.items():
                self._metrics[signal].append(value)
        return drawn

    @property
    def _metrics(self) -> dict[str, list[float]]:
        """Values whose means TRL's trainer logs next."""
        return self.trainer._metrics["train" if self.trainer.model.training else "eval"]

    def _scored(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        batch = original(*args, **kwargs)
        if self._metrics["frac_reward_zero_std"]:
            self._metrics["frac_reward_zero_std"][-1] = self.flat
        return batch

    def _rewards(
        self,
        original: Callable[..., Any],
        inputs: Any,
        prompts: Sequence[Any],
        completions: Any,
        answers: Sequence[Sequence[int]],
    ) -> Any:
        groups: dict[str, list[tuple[int, ...]]] = defaultdict(list)
        for prompt, answer in zip(prompts, answers, strict=True):
            groups[str(prompt)].append(tuple(answer))
        self._metrics["completions/duplicates"].append(duplicates(groups.values()))
        for signal, share in reasoning_shares(inputs, completions).items():
            self._metrics[signal].append(share)
        columns = self._timed("reward", original, inputs, prompts, completions, answers)
        paid = (columns * self.trainer.reward_weights.to(columns.device)).nansum(1)
        by_group = paid.view(-1, self.trainer.num_generations)
        self.flat = (by_group.amax(1) - by_group.amin(1) <= NO_SPREAD).float().mean().item()
        return columns

    def _training_step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        loss = original(*args, **kwargs)
        # The trainer itself would replace such a loss by the mean of its neighbours.
        if not math.isfinite(loss.item()):
            raise self._lost("loss")
        return loss

    def _clip(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        norm = original(*args, **kwargs)
        # With scaled gradients of float16 the optimizer skips such a step itself.
        if norm is not None and not self.trainer.args.fp16 and not math.isfinite(float(norm)):
            raise self._lost("grad_norm")
        return norm

    def _lost(
        self, signal: str, text: str = "", step: int | None = None, spared: str = "the weights"
    ) -> Lost:
        text = text or f"{_FINITE[signal]} is not a finite number"
        rate = float(self.trainer._get_learning_rate())
        return Lost(signal, text, step or self.trainer.state.global_step + 1, rate, spared)

    def _log(
        self, original: Callable[..., Any], logs: dict[str, float], *args: Any, **kwargs: Any
    ) -> Any:
        if "loss" in logs:
            step = self.trainer.state.global_step
            self._add_truth_and_time(logs)
            if self.sticks:
                self._add_yardsticks(self.sticks, logs, step)
            self.logged = step
        with self._no_empty_table():
            return original(logs, *args, **kwargs)

    @contextmanager
    def _no_empty_table(self) -> Iterator[None]:
        """Before the first answers TRL would write, print and report a table of none of them, a
        resumed training over that of the step before."""
        wanted = getattr(self.trainer, "log_completions", False)
        if wanted:
            self.trainer.log_completions = bool(self.trainer._logs["prompt"])
        try:
            yield
        finally:
            if wanted:
                self.trainer.log_completions = True

    def _add_truth_and_time(self, logs: dict[str, float]) -> None:
        metrics = self.trainer._metrics["train"]
        for reward, truth in _TRUTH.items():
            if values := metrics.get(f"{reward}/mean"):
                metrics[truth] = list(values)
        step, logs["time/monitor"] = self.spent.pop("step", 0.0), self.spent.pop("monitor", 0.0)
        train = step - logs["time/monitor"] - sum(self.spent.values())
        for part, seconds in {**self.spent, "train": train}.items():
            logs[f"time/{part}"] = seconds / max(1, self.steps)
        logs["memory"] = peak_memory()
        self.spent.clear()
        self.steps = 0

    def _add_yardsticks(self, sticks: Yardsticks, logs: dict[str, float], step: int) -> None:
        def due(every: int) -> bool:
            """Whether a multiple of ``every`` was passed since the row before."""
            return bool(every) and step // every > self.logged // every

        began = time.perf_counter()
        if due(self.kl_every):
            logs.update(sticks.kl())
        if due(self.every):
            try:
                logs.update(sticks.val())
            except UserError:  # finite weights may give logits that are not
                raise self._lost("probability", step=step, spared="a checkpoint") from None
        logs["time/monitor"] += time.perf_counter() - began


def reasoning_shares(rows: Sequence[Any], completions: Sequence[Any]) -> dict[str, float]:
    """How the answers of a step reason, see the module; nothing where rows hold no problem."""
    problems = [row["problem"] for row in rows if "problem" in row]
    if len(problems) != len(completions):
        return {}
    traces = [
        check_trace(problem_from_text(problem), text_of(completion))
        for problem, completion in zip(problems, completions, strict=True)
    ]
    return {
        "reasoning/traced": sum(bool(trace.claims) for trace in traces) / len(traces),
        "reasoning/sound": sum(trace.sound for trace in traces) / len(traces),
    }


def duplicates(groups: Iterable[Iterable[Hashable]]) -> float:
    """The share of all answers that equal another answer of their own group."""
    counts = [Counter(group) for group in groups]
    equal = sum(count for each in counts for count in each.values() if count > 1)
    return equal / max(1, sum(map(Counter.total, counts)))


def peak_memory() -> float:
    """GiB: torch's peak on the main process's GPU, else that process's own peak."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # as getrusage counts on each
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30
