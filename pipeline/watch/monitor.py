"""A training that can be watched: what is added to TRL's signals, and what ends it.

Takes hold of a trainer of TRL's, patched by Unsloth or not, by wrapping methods of that one object;
TRL itself is not touched. Ours are put beside TRL's own before its reporters (``report_to``) run,
so that wandb, trackio and tensorboard have them as ``log.jsonl`` has. Every logging step:

==========================  ======================================================================
signal                      what it is
==========================  ======================================================================
truth/optimal, /feasible    share of the training answers that are optimal, that break no rule: the
                            verdicts that the reward was made from, whatever the reward
completions/duplicates      share of the answers that equal another one of their group, in tokens;
                            with several processes of those that the main one drew
kl_start                    KL(now ‖ start) in nats a token, whatever ``beta``:
                            ``yardsticks.kl_from``; every ``monitor.kl_every`` steps
frac_reward_zero_std        share of the groups that are rewarded alike, in place of TRL's own,
                            which asks for the batch's spread where that scales rewards, and
                            takes rounding for a difference
val/optimal, /feasible,     on fixed val problems, every ``monitor.every`` steps and before the
/reward, /entropy, /loss    first: ``yardsticks.Yardsticks.val``
time/generate, /reward,     seconds a step: drawing the answers; judging them; all the rest of it
/train
time/monitor                seconds since the last row, spent on val and kl_start
tokens_per_second           of prompts and answers, per second of the steps themselves since tokens
                            were last counted: in GRPO only where answers are drawn
memory                      GiB: most that torch held on the main process's GPU since the start
                            (``max_memory_allocated``), without a GPU that process's peak
==========================  ======================================================================

A loss or gradient norm that is not a finite number ends the training before it reaches a weight, a
weight that is none before it is saved.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.nn.utils import get_total_norm
from transformers import PrinterCallback, TrainerCallback
from transformers.integrations import TensorBoardCallback

from data.common.errors import UserError, going_on
from data.recipe import Recipe
from pipeline.health.signals import NO_SPREAD
from pipeline.model import processes
from pipeline.watch.live import view
from pipeline.watch.log import Log, Stopped
from pipeline.watch.val import Yardsticks, val_rows

if TYPE_CHECKING:
    from transformers import Trainer

#: Signals by a second name: what the verdict says, beside what the reward pays.
_TRUTH = {"rewards/optimal": "truth/optimal", "rewards/validity": "truth/feasible"}
GIB = 2**30


@contextmanager
def monitored(
    trainer: Trainer,
    tokenizer: Any,
    recipe: Recipe,
    arm: str,
    kind: str,
    folder: Path,
    saved: Callable[[], Path | None],
    generates: bool = False,
) -> Iterator[None]:
    """Have ``trainer`` watched while it trains inside; what is shown is cleared up after it.

    Args:
        recipe: as it stands for the arm.
        kind: the recipe's section, ``sft`` or ``grpo``.
        folder: of the arm.
        saved: the last checkpoint that was written to its end.
        generates: see ``Yardsticks``; for a model with Unsloth's kernels.

    Raises:
        UserError: when the training ends since it is lost, or since the recipe wants it so.
    """
    trainer.remove_callback(PrinterCallback)
    _keep_reports(trainer, f"{recipe.run_name}-{arm}", folder)
    shown = view(f"{arm} ({kind})")
    log = Log(folder, kind, shown, recipe.monitor.stop)
    trainer.add_callback(log)
    sticks = None
    # Where several processes hold a model's weights in parts, one alone cannot use it.
    if processes.is_main() and not processes.cuts_weights():
        rows, output = val_rows(recipe, arm), Path(trainer.args.output_dir)
        sticks = Yardsticks(recipe, kind, trainer, tokenizer, rows, output, generates)
    monitor = Monitor(trainer, recipe, kind, sticks)
    trainer.add_callback(monitor)
    where = f"{recipe.path}: {arm}"
    own = f"arms.{arm}.settings" if "learning_rate" in recipe.all_arms[arm].settings else kind
    try:
        yield
    except Lost as lost:
        if processes.is_main():
            log.end(lost.step, {lost.signal: math.nan, "learning_rate": lost.rate}, str(lost))
        checkpoint = saved()
        without = "" if checkpoint is None else ", without that checkpoint (copy it, to keep it)"
        raise UserError(
            f"{where}: {lost} at step {lost.step}, and training ended before it reached "
            f"{lost.next}; {_kept(trainer, checkpoint, kind)}; lower {own}.learning_rate "
            f"({trainer.args.learning_rate:g}), and the same command begins anew{without}"
        ) from None
    except Stopped as stopped:
        symptom = stopped.finding.symptom
        raise UserError(
            f"{where}: ended by monitor.stop at step {trainer.state.global_step} ({symptom}); "
            f"{_kept(trainer, saved(), kind)}; without {symptom} in monitor.stop {going_on()}"
        ) from None
    finally:
        shown.close()
        monitor.release()
        wandb = sys.modules.get("wandb")
        if wandb and getattr(wandb, "run", None):
            wandb.finish()  # or the next arm would be reported as more of this one


def _keep_reports(trainer: Trainer, name: str, folder: Path) -> None:
    """Name what is reported, and have TensorBoard's files outlive the checkpoints, in
    ``tensorboard`` below ``folder``."""
    trainer.args.run_name = trainer.args.run_name or name
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(folder / "tensorboard")


def _kept(trainer: Trainer, checkpoint: Path | None, kind: str) -> str:
    if checkpoint is None:
        sooner = (
            f"a smaller {kind}.save_steps saves sooner"
            if trainer.args.save_strategy == "steps"
            else f"{kind}.save_strategy: steps saves sooner"
        )
        return f"nothing was saved yet ({sooner})"
    return f"the weights of step {checkpoint.name.rpartition('-')[2]} are in {checkpoint}"


#: What must be a finite number, by the key that a row has it under.
_FINITE = {
    "loss": "the loss",
    "grad_norm": "the gradient norm",
    "weight": "a weight",
    "probability": "the probability of a next token",
}
#: What torch says where such a probability is drawn from, and what we say. A GPU says no more than
#: that it stopped.
_NOT_DRAWN = {
    "probability tensor": f"{_FINITE['probability']} is not a finite number",
    "device-side assert": "the GPU stopped as it drew answers (device-side assert), as where a "
    "probability is not a finite number",
}


class Lost(Exception):  # noqa: N818 - it is none of ours
    """What must be a finite number is none, in the words ``said``; ``signal`` is its key in a row,
    and ``next`` is what it has not spoiled."""

    def __init__(self, signal: str, said: str, step: int, rate: float, next: str) -> None:
        super().__init__(said)
        self.signal, self.step, self.rate, self.next = signal, step, rate, next


class Monitor(TrainerCallback):
    """Adds our signals to a trainer's, and raises Lost where it is.

    ``sticks`` is None in a process that measures nothing.
    """

    def __init__(
        self, trainer: Trainer, recipe: Recipe, kind: str, sticks: Yardsticks | None
    ) -> None:
        self.trainer, self.sticks = trainer, sticks
        self.every = recipe.monitor.every
        self.kl_every = recipe.monitor.kl_every
        self.spent: Counter[str] = Counter()
        self.steps = 0
        #: Of the steps since tokens were last counted, as they are only where answers are drawn.
        self.seconds = 0.0
        self._held: list[tuple[Any, str]] = []
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
        self._held.append((owner, name))

    def release(self) -> None:
        """Give the trainer its own methods back."""
        for owner, name in self._held:
            delattr(owner, name)
        self._held = []

    # --- when ------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.logged = state.global_step
        # SFT counts its tokens itself; where it goes on, Resumable has set the count before.
        counted = getattr(self.trainer, "_total_train_tokens", None)
        self.tokens = state.num_input_tokens_seen if counted is None else counted
        if self.sticks and (self.every or self.kl_every):
            began = time.perf_counter()
            found = self.sticks.begin(fresh=state.global_step == 0)
            if found and self.every:
                self.trainer.log({**found, "time/monitor": time.perf_counter() - began})

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        seconds = time.perf_counter() - self._began
        self.spent["step"] += seconds
        self.seconds += seconds
        self.steps += 1
        if not self._weights_are_finite():
            raise self._lost("weight", step=state.global_step, next="a checkpoint")

    def _due(self, every: int, step: int) -> bool:
        """Whether a multiple of ``every`` was passed since the row before."""
        return bool(every) and step // every > self.logged // every

    def _weights_are_finite(self) -> bool:
        """Of those that are trained; not asked where several processes hold them in parts."""
        if processes.cuts_weights():
            return True
        trained = [w for w in self.trainer.model.parameters() if w.requires_grad]
        return math.isfinite(get_total_norm(trained).item())

    # --- what ------------------------------------------------------------------------------------

    def _timed(self, part: str) -> Callable[..., Any]:
        def timed(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            found = original(*args, **kwargs)
            self.spent[part] += time.perf_counter() - began
            return found

        return timed

    def _generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return self._timed("generate")(original, *args, **kwargs)
        except RuntimeError as error:  # of torch.multinomial
            for words, said in _NOT_DRAWN.items():
                if words in str(error):
                    raise self._lost("probability", said) from None
            raise

    @property
    def _metrics(self) -> dict[str, list[float]]:
        """What TRL's trainer logs the means of next."""
        return self.trainer._metrics["train" if self.trainer.model.training else "eval"]

    def _scored(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        if self._metrics["frac_reward_zero_std"]:
            self._metrics["frac_reward_zero_std"][-1] = self.flat
        return found

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
        found = self._timed("reward")(original, inputs, prompts, completions, answers)
        paid = (found * self.trainer.reward_weights.to(found.device)).nansum(1)
        groups_paid = paid.view(-1, self.trainer.num_generations)
        self.flat = (groups_paid.amax(1) - groups_paid.amin(1) <= NO_SPREAD).float().mean().item()
        return found

    def _training_step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        loss = original(*args, **kwargs)
        # The trainer itself would put the mean of its neighbours in the place of such a loss.
        if not math.isfinite(loss.item()):
            raise self._lost("loss")
        return loss

    def _clip(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        norm = original(*args, **kwargs)
        # With scaled gradients of float16 the optimizer leaves such a step out itself.
        if norm is not None and not self.trainer.args.fp16:
            value = norm.item() if hasattr(norm, "item") else norm
            if not math.isfinite(value):
                raise self._lost("grad_norm")
        return norm

    def _lost(
        self, signal: str, said: str = "", step: int | None = None, next: str = "the weights"
    ) -> Lost:
        said = said or f"{_FINITE[signal]} is not a finite number"
        rate = float(self.trainer._get_learning_rate())
        return Lost(signal, said, step or self.trainer.state.global_step + 1, rate, next)

    def _log(
        self, original: Callable[..., Any], logs: dict[str, float], *args: Any, **kwargs: Any
    ) -> Any:
        if "loss" in logs:
            self._add(logs)
        return original(logs, *args, **kwargs)

    def _add(self, logs: dict[str, float]) -> None:
        """Put our signals beside the trainer's, which it averages over the steps since the last
        row in ``_metrics``."""
        metrics = self.trainer._metrics["train"]
        for reward, truth in _TRUTH.items():
            if found := metrics.get(f"{reward}/mean"):
                metrics[truth] = list(found)
        if found := metrics.get("num_tokens"):
            if self.seconds:
                logs["tokens_per_second"] = (found[-1] - self.tokens) / self.seconds
            self.tokens, self.seconds = found[-1], 0.0
        parts = [part for part in ("generate", "reward") if part in self.spent]
        rest = self.spent["step"] - sum(self.spent[part] for part in parts)
        for part, seconds in [*((part, self.spent[part]) for part in parts), ("train", rest)]:
            logs[f"time/{part}"] = seconds / max(1, self.steps)
        logs["memory"] = peak_memory()
        self.spent.clear()
        self.steps = 0
        step = self.trainer.state.global_step
        if self.sticks:
            began = time.perf_counter()
            if self._due(self.kl_every, step):
                logs.update(self.sticks.kl())
            if self._due(self.every, step):
                try:
                    logs.update(self.sticks.val())
                except UserError:  # weights that are numbers may give logits that are none
                    raise self._lost("probability", step=step, next="a checkpoint") from None
            logs["time/monitor"] = time.perf_counter() - began
        self.logged = step


def duplicates(groups: Any) -> float:
    """The share of all answers that equal another answer of their own group."""
    counts = [Counter(group) for group in groups]
    equal = sum(count for each in counts for count in each.values() if count > 1)
    return equal / max(1, sum(map(Counter.total, counts)))


def peak_memory() -> float:
    """GiB, see the module."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    unit = 1 if sys.platform == "darwin" else 1024  # as getrusage counts on each
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB
