"""Kills stages at chosen and at random moments, with SIGKILL, and lets the same command go on.

``python -m tests.killing --kills 24`` kills every case so often, compares what it ends with to a
run that nothing happened to, and prints a table in Markdown: where it was killed, from what it went
on, and which files differ in the end. ``--where`` prints every change to a file that was not
survived, too.
"""

from __future__ import annotations

import argparse
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
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from data import make
from data.common.errors import run_main
from data.common.files import BEGUN, MANIFEST, finished
from data.recipe import Recipe, load_recipe

if __package__:  # or below pytest, where the folder itself is searched
    sys.path.insert(0, str(Path(__file__).parent))

#: Of a logged row and of a manifest, what a clock says; and the commit, which may come meanwhile.
CLOCK = {
    "seconds", "commit", "step_time", "train_runtime", "train_samples_per_second",
    "train_steps_per_second", "time/generate", "time/reward", "time/train", "time/monitor",
    "memory",
}  # fmt: skip
#: What Python reports of changes to files; what torch and safetensors write is not among it.
EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}
RUN = Path("runs", "small")
EMBEDDED = Path(__file__).parent.parent / "pipeline" / "embedded"

STEPS = {"save_steps": 2, "logging_steps": 3, "warmup_steps": 2}
#: A checkpoint lies between two logged steps.
EPOCHS = {"save_strategy": "epoch", "logging_steps": 5}
GROUPED = {"train_sampling_strategy": "group_by_length"}
DROPPING = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.2, "target_modules": "all"}
PROBLEMS, SAMPLES = 20, 4
GRPO = {
    **STEPS, "max_steps": 7, "per_device_train_batch_size": 8, "num_generations": 4,
    "max_completion_length": 48, "learning_rate": 1e-3,
}  # fmt: skip
#: Answers of a generation are used for four steps, and a generation is not saved.
REUSED = {
    **GRPO, "max_steps": 6, "save_steps": 3, "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2, "steps_per_generation": 4, "num_iterations": 2,
}  # fmt: skip


def _data(recipe: Recipe) -> None:
    make.run(recipe, force=False, workers=1)


@dataclass(frozen=True)
class Case:
    """A stage to be killed.

    Attributes:
        work: what is run in the folder of its recipe.
        changes: to ``tiny.RECIPE``.
        fell: of that folder and the last change to a file, where a kill fell, and from what the
            same command goes on.
        before: what is run there before.
    """

    name: str
    work: Callable[[Recipe], None]
    changes: dict[str, Any]
    fell: Callable[[Path, str], tuple[str, str]]
    before: Callable[[Recipe], None] = _data


def _sft(recipe: Recipe) -> None:
    from pipeline import sft

    sft.run(recipe, force=False)


def _grpo(recipe: Recipe) -> None:
    from pipeline import grpo

    grpo.run(recipe, force=False)


def _sample(recipe: Recipe) -> None:
    from eval.answers.sampling import sample_arm

    sample_arm(recipe, "base", force=False)


def _judge(recipe: Recipe) -> None:
    from eval import elicitation
    from eval import judge as report
    from eval.answers.sampling import sample_arm

    for arm in ("base", "sft"):
        sample_arm(recipe, arm, force=False)
    report.run(recipe, force=False)
    elicitation.run(recipe, force=False)


def _made_and_tuned(recipe: Recipe) -> None:
    make.run(recipe, force=False, workers=1)
    _sft(recipe)


def _sft_settings(**more: Any) -> dict[str, Any]:
    from tiny import RECIPE

    return {"sft": {**RECIPE["sft"], **STEPS, "max_steps": 7, **more}}


def cases() -> dict[str, Case]:
    """By name; three epochs of SFT, two of GRPO."""
    real = {
        "model": str(EMBEDDED), "dtype": "float32", "arms": {"grpo": {"trainer": "grpo"}},
        "monitor": {"every": 3, "kl_every": 2, "problems": 1},
    }  # fmt: skip
    tuned = {
        "arms": {"sft": {"trainer": "sft"}},
        "conclusion": {"arms": ["sft"], "fresh": 8, "margins": {"resamples": 200}},
    }
    tiers = {"dense": {"train": 8, "val": 1, "test": PROBLEMS, "events": [3, 4]}}
    four = {"dense": {**tiers["dense"], "train": 4, "test": 1}}
    asking = {
        "eval": {"samples": SAMPLES, "rows": 8, "max_tokens": 24, "resamples": 200},
        "data": {"main": "dense", "tiers": tiers},
    }
    light = {**_sft_settings(), "lora": DROPPING}
    again = {**real, "grpo": REUSED, "lora": DROPPING, "data": {"main": "dense", "tiers": four}}
    found = [
        Case("sft", _sft, _sft_settings(), in_training),
        Case("sft, LoRA", _sft, light, in_training),
        Case("sft, saved after each epoch", _sft, _sft_settings(**EPOCHS), in_training),
        Case("sft, grouped by length", _sft, _sft_settings(**GROUPED), in_training),
        Case("grpo", _grpo, {**real, "grpo": GRPO}, in_training),
        Case("grpo, LoRA, answers used again", _grpo, again, in_training),
        Case("sampling", _sample, asking, in_sampling),
        Case("data", _data, {}, in_data, before=lambda recipe: None),
        Case("sampling, report, verdict", _judge, {**asking, **tuned}, in_judging, _made_and_tuned),
    ]
    return {case.name: case for case in found}


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

    @property
    def trained(self) -> bool:
        """Whether it came so far that it had gone on, if from anything: only then is a log
        written."""
        return any("log.jsonl" in change for _, change in self.events)

    def strayed(self, lies: str | None) -> str | None:
        """What is wrong with what it went on from, where before it ``lies`` the newest whole
        checkpoint, or what else a kill is counted by."""
        checkpoint = lies if lies and lies.startswith("checkpoint-") else None
        early = self.killed and not self.trained and self.began_at is None
        if self.began_at == checkpoint or early:
            return None
        return f"went on from {self.began_at}, not from {checkpoint}"


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
                while not full:
                    signal.pause()
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
    """The files that differ; of a manifest, by which keys."""
    differ = sorted(
        name for name in whole.keys() | found.keys() if whole.get(name) != found.get(name)
    )
    return [name + _keys(whole.get(name), found.get(name)) for name in differ]


def _keys(one: Any, other: Any) -> str:
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return ""
    keys = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    return f" ({', '.join(keys)})"


# --- where a kill fell -----------------------------------------------------------------------

START, DONE = "the start", "nothing left to do"


def in_training(folder: Path, change: str) -> tuple[str, str]:
    from pipeline.train.checkpoints import last_whole
    from pipeline.train.trainer import CHECKPOINTS

    name, part, *_ = [*change.split()[1].split("/"), ""]
    stage = folder / RUN / name
    if finished(stage):
        return "after the end", DONE
    last = last_whole(stage / CHECKPOINTS)
    whole = _step(last) if last else 0
    steps = [_step(path) for path in (stage / CHECKPOINTS).glob("checkpoint-*")]
    if part.startswith((".adapter", ".model", f".{MANIFEST}")):
        where = "while the model or its manifest was written"
    elif max(steps, default=0) > whole:
        where = "while a checkpoint was written"
    elif len(steps) > 1:
        where = "while an old checkpoint was removed"
    else:
        where = "between checkpoints" if whole else "before the first checkpoint"
    return where, last.name if last else START


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def in_sampling(folder: Path, change: str) -> tuple[str, str]:
    stage = folder / RUN / "eval" / "base"
    if finished(stage):
        return "after the end", DONE
    samples = stage / "samples.jsonl"
    answers = samples.read_bytes().count(b"\n") if samples.is_file() else 0
    if answers == PROBLEMS * SAMPLES:
        return "while they were put together", "all answers"
    if answers:
        return "while answers were drawn", "some of the answers"
    return "before the first answer", START


def in_data(folder: Path, change: str) -> tuple[str, str]:
    stage = folder / RUN / "data"
    if finished(stage):
        return "after the end", DONE
    some = (stage / "train.jsonl").exists()
    return "while files were written" if some else "while problems were drawn", START


def in_judging(folder: Path, change: str) -> tuple[str, str]:
    stages = ("base", "sft", ".", "base/fresh", "sft/fresh", "elicitation")
    done = sum(finished(folder / RUN / "eval" / stage) for stage in stages)
    where = (
        "while answers were drawn",
        "while answers were drawn",
        "while they were judged and reported",
        "while fresh answers were drawn",
        "while fresh answers were drawn",
        "while the verdict was reached",
        "after the end",
    )[done]
    if done == len(stages):
        return where, DONE
    return where, f"{done} of {len(stages)} stages" if done else START


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
        """At a change or at a time of the whole run."""
        times = [when for when, _ in self.whole.events]
        if rng.random() < 0.5:
            return Blow(event=rng.randint(1, len(times)))
        when = rng.uniform(times[0], times[-1])
        event = max(i for i, one in enumerate(times, 1) if one <= when)
        return Blow(event=event, seconds=max(1e-4, when - times[event - 1]))

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
    import torch

    torch.set_num_threads(1)
    import peft
    import transformers
    import trl  # noqa: F401
    from trl import GRPOTrainer, SFTTrainer  # noqa: F401

    from eval import judge as report  # noqa: F401
    from pipeline import grpo, sft  # noqa: F401

    transformers.utils.logging.set_verbosity_error()
    del peft


@dataclass
class Tally:
    """What befell a case."""

    kills: int = 0
    fell: Counter[str] = field(default_factory=Counter)
    began: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def row(self, name: str) -> str:
        cells = (
            _counted(self.fell),
            _counted(self.began),
            ", ".join(dict.fromkeys(self.wrong)) or "nothing",
        )
        return f"| {name} | {self.kills} | {' | '.join(cells)} |"


def _counted(found: Counter[str]) -> str:
    return ", ".join(f"{what} ({times})" for what, times in found.most_common())


def killed_at_random(trial: Trial, kills: int, rng: random.Random) -> Tally:
    """Kill a case so often, up to four times a run, and let it go on to its end each time."""
    tally = Tally()
    while tally.kills < kills:
        folder = trial.fresh()
        count = min(rng.randint(1, 4), kills - tally.kills)
        lies = None
        for life in trial.survive(folder, [trial.random_kill(rng) for _ in range(count)]):
            if strayed := life.strayed(lies):
                tally.wrong.append(strayed)
            if life.killed:
                where, lies = trial.case.fell(folder, life.events[-1][1])
                tally.kills += 1
                tally.fell[where] += 1
                tally.began[lies] += 1
                tally.changes[life.events[-1][1]] += 1
        tally.wrong += differences(trial.left, left_in(folder))
        shutil.rmtree(folder)
    return tally


def main() -> None:
    preload()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=4, help="of each case")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", nargs="+", default=list(cases()), help="or only these")
    parser.add_argument("--where", action="store_true", help="print the last changes to files")
    arguments = parser.parse_args()
    rows, wrong = [], 0
    for name in arguments.cases:
        with tempfile.TemporaryDirectory() as place:
            trial = Trial(Path(place), cases()[name])
            rng = random.Random(f"{arguments.seed} {name}")
            tally = killed_at_random(trial, arguments.kills, rng)
            seconds = trial.whole.events[-1][0]
        print(f"{name}: {tally.kills} kills of a run of {seconds:.1f} s", flush=True)
        for change, times in sorted(tally.changes.items()) if arguments.where else ():
            print(f"    {times} x at: {change}", flush=True)
        rows.append(tally.row(name))
        wrong += len(tally.wrong)
    print("\n| case | kills | where they fell | what it went on from | different in the end |")
    print("|---|--:|---|---|---|", *rows, sep="\n")
    sys.exit(min(wrong, 1))


if __name__ == "__main__":
    main()
