"""Going on after an interruption as if there had been none: what a checkpoint lacks for that.

A stage that was killed goes on with the same command, and on the same machine it ends with the same
weights, bit for bit, as one that ran through (``tests/test_resume.py``). A checkpoint of
transformers has the weights, the optimizer, the schedule and the state of every random
generator. Added here are

- the order of GRPO's prompts from the second epoch on, and that of examples grouped by length;
- GRPO's answers that are used for several steps: they are not kept, so no checkpoint is written
  between two of these steps;
- what a ``sampling`` section counts and remembers (``pipeline.train.rollouts.Dynamic``);
- the sums behind logged means, so a checkpoint is logged, too;
- an end: TRL's and transformers' trainers take a step too many when they go on from the last one.

Which runs are equal, and which cannot be: docs/operations.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl.trainer.utils import RepeatSampler

from pipeline.train.checkpoints import keep_newest


class Resumable(TrainerCallback):
    """Makes the checkpoints of ``trainer`` complete, and starts from one as it was left. Keeps as
    many as ``save_total_limit`` says: transformers would count a user's copy as one."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer: Any = trainer
        self._owed = False
        self._limit = trainer.args.save_total_limit or 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        args.save_total_limit = None
        samplers = _samplers(given["train_dataloader"])
        for sampler in samplers:
            # Else it draws from the global generator, before that one's state has been loaded.
            if isinstance(sampler, LengthGroupedSampler):
                seed = args.seed if args.data_seed is None else args.data_seed
                sampler.generator = torch.Generator().manual_seed(seed)
        if not state.global_step:
            return
        trainer = self.trainer
        for sampler in samplers:
            # These draw the order of an epoch from a generator of their own.
            if isinstance(sampler, RepeatSampler | LengthGroupedSampler):
                for _ in range(int(state.epoch)):
                    next(iter(sampler), None)
        rows = [row for row in state.log_history if "loss" in row]
        steps = [0, *(row["step"] for row in rows)]
        trainer._total_loss_scalar = sum(
            row["loss"] * (step - before)
            for row, before, step in zip(rows, steps, steps[1:], strict=False)
        )
        tokens = (row["num_tokens"] for row in reversed(rows) if "num_tokens" in row)
        trainer._total_train_tokens = next(tokens, 0)
        if state.global_step >= state.max_steps or control.should_training_stop:
            trainer.get_batch_samples = lambda *_: ([], None)  # or it takes one more step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        self._owed |= control.should_save
        control.should_save = self._owed and (
            at_generation(self.trainer) or control.should_training_stop
        )
        if control.should_save:
            self._owed = False
            control.should_log = True
        return control

    on_epoch_end = on_step_end  # with save_strategy: epoch

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.should_save and self._limit > 0:
            keep_newest(Path(args.output_dir), self._limit)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        args.save_total_limit = self._limit or None  # for the manifest


def at_generation(trainer: Any) -> bool:
    """Whether the next batch gets new answers, if it gets any."""
    args = trainer.args
    if not hasattr(args, "steps_per_generation"):
        return True
    return bool(trainer._step % (args.steps_per_generation * args.num_iterations) == 0)


def _samplers(batches: Any) -> list[Any]:
    """The different samplers of a data loader, below accelerate's wrappers."""
    found: dict[int, Any] = {}
    while batches is not None:
        if hasattr(batches, "sampler"):
            found[id(batches.sampler)] = batches.sampler
        batches = getattr(batches, "batch_sampler", None)
    return list(found.values())
