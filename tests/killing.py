"""Kills stages at chosen and at random moments, with SIGKILL, and lets the same command go on."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from running import EMBEDDED

from data import make
from data.common.errors import run_main
from data.common.files import BEGUN, MANIFEST
from data.recipe import Recipe, load_recipe

#: Keys of a logged row and of a manifest that hold a clock's reading, or the commit.
CLOCK = {
    "seconds", "commit", "step_time", "train_runtime", "train_samples_per_second",
    "train_steps_per_second", "time/generate", "time/reward", "time/train", "time/monitor",
    "tokens_per_second", "memory",
}  # fmt: skip
#: What Python reports of changes to files; what torch and safetensors write is not among it.
EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}

STEPS = {"save_steps": 2, "logging_steps": 3, "warmup_steps": 2}
DROPPING = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.2, "target_modules": "all"}
GRPO = {
    **STEPS, "max_steps": 7, "per_device_train_batch_size": 8, "num_generations": 4,
    "max_completion_length": 48, "learning_rate": 1e-3,
}  # fmt: skip
#: The steps may end sooner: as many are drawn as ten steps draw that draw nothing again.
CHOSEN = {**GRPO, "max_steps": 10}
CHOOSING = {"redraws": 2, "by_success": True, "answers": 80}
#: Answers of a generation are used for four steps, and a generation is not saved.
REUSED = {
    **GRPO, "max_steps": 6, "save_steps": 3, "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2, "steps_per_generation": 4, "num_iterations": 2,
}  # fmt: skip


def _data(recipe: Recipe) -> None:
    make.run(recipe, force=False)


@dataclass(frozen=True)
class Case:
    """A stage to be killed.

    Attributes:
        work: what is run in the folder of its recipe.
        changes: to ``tiny.RECIPE``.
        before: what is run there before.
    """

    work: Callable[[Recipe], None]
    changes: dict[str, Any]
    before: Callable[[Recipe], None] = _data


def _train(stage: str) -> Callable[[Recipe], None]:
    return lambda recipe: import_module(f"pipeline.{stage}").run(recipe, force=False)


def _sample(recipe: Recipe, *arms: str) -> None:
    from eval.answers.sampling import sample_arm

    for arm in arms or ("base",):
        sample_arm(recipe, arm, force=False)


def _judge(recipe: Recipe) -> None:
    from eval import elicitation, judge

    _sample(recipe, "base", "sft")
    judge.run(recipe, force=False)
    elicitation.run(recipe, force=False)


def _made_and_tuned(recipe: Recipe) -> None:
    _data(recipe)
    _train("sft")(recipe)


def cases() -> dict[str, Case]:
    """By name; three epochs of SFT, two of GRPO."""
    from tiny import RECIPE

    def sft(**more: Any) -> dict[str, Any]:
        return {"sft": {**RECIPE["sft"], **STEPS, "max_steps": 7, **more}}

    real = {
        "model": str(EMBEDDED), "dtype": "float32", "arms": {"grpo": {"trainer": "grpo"}},
        "monitor": {"every": 3, "kl_every": 2, "problems": 1},
    }  # fmt: skip
    tuned = {
        "arms": {"sft": {"trainer": "sft"}},
        "conclusion": {"arms": ["sft"], "fresh": 8, "margins": {"resamples": 200}},
    }
    dense = {"train": 8, "val": 1, "test": 20, "events": [3, 4]}
    four = {"main": "dense", "tiers": {"dense": {**dense, "train": 4, "test": 1}}}
    asking = {
        "eval": {"samples": 4, "rows": 8, "max_tokens": 24, "resamples": 200},
        "data": {"main": "dense", "tiers": {"dense": dense}},
    }
    again = {**real, "grpo": REUSED, "lora": DROPPING, "data": four}
    tune, reward = _train("sft"), _train("grpo")
    return {
        "sft": Case(tune, sft()),
        "sft, LoRA": Case(tune, {**sft(), "lora": DROPPING}),
        # A checkpoint lies between two logged steps.
        "sft, saved after each epoch": Case(tune, sft(save_strategy="epoch", logging_steps=5)),
        "sft, grouped by length": Case(tune, sft(train_sampling_strategy="group_by_length")),
        "grpo": Case(reward, {**real, "grpo": GRPO}),
        "grpo, problems chosen": Case(reward, {**real, "grpo": CHOSEN, "sampling": CHOOSING}),
        "grpo, LoRA, answers used again": Case(reward, again),
        "sampling": Case(_sample, asking),
        "data": Case(_data, {}, before=lambda recipe: None),
        "sampling, report, verdict": Case(_judge, {**asking, **tuned}, _made_and_tuned),
    }


# --- a run in a process of its own -----------------------------------------------------------


@dataclass(frozen=True)
class Blow:
    """What befalls a run, at a change to a file that is not made any more.

    Attributes:
        words: the first change whose line has all of them.
        event: or the how-manieth it is, from 1.
        seconds: or so long after that.
        kind: a signal; none: the disk is full from then on, and Python is told so at every file
            that it begins.
        most: or files may have so many bytes from then on, whoever writes them: a write beyond
            fails in the middle, as on a full disk.
    """

    words: tuple[str, ...] = ()
    event: int = 0
    seconds: float = 0.0
    kind: signal.Signals | None = signal.SIGKILL
    most: int = 0

    def falls(self, count: int, line: str) -> bool:
        return count == self.event or bool(self.words and all(word in line for word in self.words))


@dataclass
class Life:
    """What became of a run: its changes to files with their times, and how it ended."""

    events: list[tuple[float, str]]
    code: int
    said: str

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL

    @property
    def began_at(self) -> str | None:
        """The checkpoint that it said it went on from."""
        words = self.said.partition("going on from ")[2].split()
        return Path(words[0]).name if words else None


def live(folder: Path, work: Callable[[Recipe], None], blow: Blow | None = None) -> Life:
    """Run ``work`` on the recipe of ``folder`` in a child of this process, to its end or the blow.

    Of this process only one thread must have computed anything: the child has no other.
    """
    read, write = os.pipe()
    said = os.memfd_create("said")
    started = time.monotonic()
    child = os.fork()
    if not child:
        _child(folder, work, blow, write, said)
    os.close(write)
    events: list[tuple[float, str]] = []
    struck = blow is None or blow.kind is None
    with os.fdopen(read, encoding="utf-8") as lines:
        for line in lines:
            events.append((time.monotonic() - started, line.strip()))
            if not struck and blow.falls(len(events), line):
                struck = True
                time.sleep(blow.seconds)
                os.kill(child, blow.kind)
    _, status = os.waitpid(child, 0)
    with os.fdopen(said, encoding="utf-8", errors="replace") as file:
        file.seek(0)
        return Life(events, os.waitstatus_to_exitcode(status), file.read())


def _child(
    folder: Path, work: Callable[[Recipe], None], blow: Blow | None, report: int, said: int
) -> None:
    """Do the work and end; every change to a file is reported before it is made."""
    code = 1
    try:
        os.chdir(folder)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - pytest has replaced it
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        recipe = load_recipe(Path("small.yaml"))
        count, full = 0, False

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count, full
            if event not in EVENTS or (event == "open" and not _writes(arguments)):
                return
            path = os.fspath(arguments[0]) if isinstance(arguments[0], str | Path) else ""
            if not path.startswith("runs"):
                return
            count += 1
            to = f" to {Path(arguments[1]).name}" if event == "os.rename" else ""
            line = f"{event.removeprefix('os.')} {'/'.join(Path(path).parts[2:])}{to}\n"
            os.write(report, line.encode())
            if blow and not full and blow.falls(count, line) and not blow.seconds:
                full = blow.kind is None
                if full and blow.most:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (blow.most, blow.most))
                while not full:  # to pause would miss a signal that has just come
                    time.sleep(0.05)
            if full and not blow.most and event in ("open", "os.mkdir"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

        sys.addaudithook(watch)
        run_main(lambda: work(recipe))
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    if isinstance(mode, str):
        return bool(set("wax+") & set(mode))
    return bool(isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


# --- what it leaves --------------------------------------------------------------------------


def left_in(folder: Path) -> dict[str, Any]:
    """Every file below ``runs`` as its hash; of logs and manifests the content, clocks aside. But
    neither locks nor, beside a manifest, the note that the stage was begun."""
    return {
        path.relative_to(folder).as_posix(): _content(path)
        for path in sorted((folder / "runs").rglob("*"))
        if path.is_file()
        and path.suffix != ".lock"
        and not (path.name == BEGUN and path.with_name(MANIFEST).is_file())
    }


def _content(path: Path) -> Any:
    if path.name == MANIFEST:
        return _without_clock(json.loads(path.read_text()))
    if path.name == "log.jsonl":
        return [_without_clock(json.loads(line)) for line in path.read_text().splitlines()]
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _without_clock(found: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in found.items() if key not in CLOCK}
    if "train_loss" in kept:  # a sum that is taken in another order
        kept["train_loss"] = round(kept["train_loss"], 6)
    return kept


def differences(whole: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """The files that differ."""
    return sorted(
        name for name in whole.keys() | found.keys() if whole.get(name) != found.get(name)
    )


# --- a case ----------------------------------------------------------------------------------


class Trial:
    """A case in a folder: once whole, and as often as wanted killed."""

    def __init__(self, folder: Path, case: Case) -> None:
        self.case, self._start, self._count = case, folder / "start", 0
        self._start.mkdir(parents=True)
        _write(self._start, case.changes)
        life = live(self._start, case.before)
        assert life.code == 0, life.said
        self.whole_folder = self.fresh()
        self.whole = live(self.whole_folder, case.work)
        assert self.whole.code == 0, self.whole.said
        self.left = left_in(self.whole_folder)

    def fresh(self) -> Path:
        """A folder in which the case has not begun."""
        self._count += 1
        folder = self._start.with_name(f"try-{self._count}")
        shutil.copytree(self._start, folder)
        return folder

    def random_kill(self, rng: random.Random) -> Blow:
        """At a change to a file, or some time after it."""
        event = rng.randrange(len(self.whole.events))
        until = self.whole.events[min(event + 1, len(self.whole.events) - 1)][0]
        wait = (until - self.whole.events[event][0]) * rng.random() * rng.randrange(2)
        return Blow(event=event + 1, seconds=wait)

    def survive(self, folder: Path, blows: Iterable[Blow]) -> Iterator[Life]:
        """Yield the lives of the case in ``folder``: one for each blow, and then to the end."""
        for blow in blows:
            life = live(folder, self.case.work, blow)
            yield life
            if life.code == 0:
                return
            assert life.killed or blow.kind != signal.SIGKILL, life.said
        life = live(folder, self.case.work)
        assert life.code == 0, life.said
        yield life


@cache
def trial_of(place: Path, name: str) -> Trial:
    return Trial(place / name, cases()[name])


def ends_with(place: Path, name: str, blows: Sequence[Blow]) -> tuple[list[Life], list[str]]:
    """The lives of a case that all these befall, and which files differ in the end from a run that
    nothing happened to."""
    trial = trial_of(place, name)
    folder = trial.fresh()
    lives = list(trial.survive(folder, blows))
    return lives, differences(trial.left, left_in(folder))


def _write(folder: Path, changes: dict[str, Any]) -> None:
    from tiny import save_model, write_recipe

    changes = dict(changes)
    model = changes.pop("model", None)
    with contextlib.chdir(folder):
        write_recipe(Path(), model or save_model(Path("model"), "qwen3"), **changes)


def preload() -> None:
    """Import what the stages import, so that a child has it at once; in one thread, which alone
    survives a fork."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read by torch, for the threads that load weights, too
    # Several threads that load weights race for what forking left of torch's pool.
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    import torch

    torch.set_num_threads(1)
    import transformers
    from trl import GRPOTrainer, SFTTrainer  # noqa: F401

    from eval import judge  # noqa: F401
    from pipeline import grpo, sft  # noqa: F401

    transformers.utils.logging.set_verbosity_error()


def killed_at_random(place: Path, name: str, kills: int, seed: int = 1) -> set[str]:
    """Kill a case so often, up to four times a run, and let it go on to its end each time; returns
    the files that differ."""
    trial, rng = trial_of(place, name), random.Random(f"{seed} {name}")
    fell, wrong = 0, set[str]()
    while fell < kills:
        folder = trial.fresh()
        blows = [trial.random_kill(rng) for _ in range(min(rng.randint(1, 4), kills - fell))]
        fell += sum(life.killed for life in trial.survive(folder, blows))
        wrong.update(differences(trial.left, left_in(folder)))
        shutil.rmtree(folder)
    return wrong
