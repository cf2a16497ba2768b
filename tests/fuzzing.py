"""Feeds spoilt copies of sound inputs to whatever reads a file of a user, a library or a model.

Each must be accepted, with all that follows from that, or refused by a UserError of one line;
anything else, and what takes longer than ``SECONDS``, is a failure. ``tests/test_hostile.py`` feeds
them, ``FUZZ=10`` times as many where that is set.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path

from answers import CORRUPTIONS
from problems import day, tier_problems
from running import RECIPES
from spoiling import as_json, as_lines, spoilt

from data.common.errors import UserError
from data.problem import Problem, problem_from_text
from data.prompts import answer, prompt
from data.recipe import load_recipe
from data.rows import new_row, read_problems, row_to_json
from data.sections import RewardSection
from data.solver import UnprovenError, optimal_schedule, prove
from data.tiers import EFFORT
from rewards import blog
from rewards.parse import ParseFailure, parse, parse_leniently
from rewards.reward import SHAPES, totals
from rewards.verify import VALID, confirm, verify

#: Characters of a refusal, and seconds of a processor that one input may take.
SENTENCE, SECONDS = 1_500, 20.0

# --- targets ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """Something that reads what is not ours.

    Attributes:
        texts: sound inputs.
        form: of them, see ``spoiling.spoilt``.
        name: of the file that an input is written to, in a folder of its own.
        feed: reads that file, and does with what was accepted what follows.
    """

    texts: Callable[[], list[bytes]]
    form: str
    name: str
    feed: Callable[[Path], None]


def _recipes() -> list[bytes]:
    return [path.read_bytes() for path in sorted(RECIPES.glob("*.yaml"))]


def _feed_recipe(path: Path) -> None:
    from pipeline.train import settings

    for recipe in RECIPES.glob("*.yaml"):  # those that it may extend
        shutil.copy(recipe, path.parent)
    settings.check_settings(load_recipe(path))


@cache
def _problems() -> list[Problem]:
    tiers = ("blog", "dense", "trap", "rules", "gap", "at_most")
    return [day(), *(problem for tier in tiers for problem in tier_problems(tier, 4, 9))]


def _rows() -> list[bytes]:
    rows = [
        row_to_json(new_row(f"test-{i}", "test", "dense", problem, ("none", "computed")[i % 2]))
        for i, problem in enumerate(_problems())
    ]
    return [as_lines(rows[at : at + 3]) for at in range(8)]


def _feed_rows(path: Path) -> None:
    for row in read_problems(path):
        _use(row["problem"])
        (row["prompt"] + row["gold"] + row["id"] + row["tier"]).encode()
        verify(row["problem"], row["gold"])


def _use(problem: Problem) -> None:
    """Whatever a stage does with a problem that it was given."""
    prompt(problem).encode()
    assert problem_from_text(problem.text) == problem
    assert problem.fingerprint
    with contextlib.suppress(UnprovenError):
        best = prove(problem, EFFORT)
        assert not best or problem.is_feasible(best)


@cache
def _completions() -> list[bytes]:
    found = []
    for problem in _problems():
        gold = optimal_schedule(problem)
        found.append(answer(gold, None).encode())
        made = (corrupt(problem, gold) for corrupt in CORRUPTIONS.values())
        found += [one[0].encode(errors="surrogatepass") for one in made if one]
    return found


def _feed_completion(path: Path) -> None:
    text = path.read_bytes().decode(errors="surrogateescape")
    # Mostly the day that gold was of: a mutated answer to another one is all unknown events.
    known = [p for p in _problems() if p.events[0].name in text] or _problems()
    problem = known[len(text) % len(known)]
    verdict = verify(problem, text)
    assert verify(problem, text) == verdict, "judged otherwise the second time"
    assert 0 <= verdict.ratio <= 1
    for reader in (parse, parse_leniently):
        schedule = reader(text)
        if not isinstance(schedule, ParseFailure):
            found = confirm(problem, schedule)  # raises where CP-SAT does not agree
            if found.status in VALID:
                assert problem.is_feasible(schedule)
                assert problem.objective(schedule) == found.objective <= problem.optimum
    for shape, about in SHAPES.items():
        (paid,) = totals(RewardSection(shape), [problem.text], [text])
        assert shape == "blog" or 0 <= paid <= sum(about.weights.values()) + 1e-9, (
            f"{shape}: {paid}"
        )
    # The published reward knows no further rules, and a day without them has a greater optimum.
    if len(problem.rules) == 3:
        paid = sum(blog.rewards(blog.row_of(problem), text).values())
        assert 0 <= paid <= 100 + 1e-9, f"the published reward pays {paid}"


def _logs() -> list[bytes]:
    from tests.synthetic import collapsed, grpo_log, hacked, sft_log

    return [
        as_lines(list(rows)[:60]) for rows in (grpo_log(1), sft_log(2), hacked(3), collapsed(4))
    ]


def _feed_log(path: Path) -> None:
    from data.common.console import plain_console
    from pipeline.health.logs import examine
    from pipeline.health.report import as_json, print_patients

    patients = [examine("arm", path)]
    json.loads(as_json(patients))
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")):
        print_patients(patients, plain_console())


def _days() -> list[bytes]:
    typed = b"Standup 9-9:30 !\n- Lunch (12:00 - 13:00)\n# no event\n"
    listed = [
        {"name": "Standup", "start": "9:00", "end": "9:30", "priority": True},
        ["Lunch", "12:00", "13:00"],
    ]
    return [typed, as_json(listed), *(as_json(one.to_json()) for one in _problems()[::3])]


def _feed_day(path: Path) -> None:
    from eval.day.days import prove_day, read_day

    for flags in ({"date": date(2026, 3, 2)}, {"priorities": ["standup"]}, {}):
        # Only the plain question decides; the others have a flag that may not fit.
        with contextlib.suppress(UserError) if flags else contextlib.nullcontext():
            day = read_day(path.read_bytes(), str(path), **flags)
            assert all("\n" not in note for note in day.notes)
            problem, best = prove_day(day.problem, str(path))
            verify(problem, answer(best, None))
            _use(problem)


def _calendars() -> list[bytes]:
    from tests.test_ics import APPLE, GOOGLE, OUTLOOK

    return [text.encode() for text in (GOOGLE, OUTLOOK, APPLE)]


def _asked() -> dict[str, Problem]:
    return {f"test-{i}": problem for i, problem in enumerate(_problems()[:3])}


def _samples() -> list[bytes]:
    rows = [
        {"id": name, "arm": "base", "sample": number, "completion": text, "finish_reason": "stop",
         "tokens": 9}
        for name, problem in _asked().items()
        for number, text in enumerate((answer(optimal_schedule(problem), None), "no idea"))
    ]  # fmt: skip
    return [as_lines(rows), as_lines(rows[:1])]


def _feed_samples(path: Path) -> None:
    from data.run import VERDICTS
    from eval.answers.files import ProblemFile, read_samples, read_verdicts
    from eval.answers.judge import judge_arm, score_rows
    from eval.stats.summary import tally

    rows = list(judge_arm(_asked(), path))
    counts = tally(rows, dict.fromkeys(_asked(), "dense"))
    assert counts.samples.sum() == len(rows)
    assert len(list(read_verdicts(path.with_name(VERDICTS), _asked()))) == len(rows)
    source = path.with_name("test.jsonl")
    source.write_bytes(_rows()[0])
    file = ProblemFile(str(source))
    list(score_rows(file.problems()[0], read_samples(path, file)))


@cache
def _model() -> Path:
    from tiny import save_model

    return save_model(Path(tempfile.mkdtemp()) / "model", "qwen3", hidden=16)


def _feed_model(path: Path) -> None:
    from pipeline.model.decode import render
    from pipeline.model.load import load_model, quiet

    for part in _model().iterdir():
        if part.name != path.name:
            shutil.copy(part, path.parent)
    quiet()
    network, tokenizer = load_model(str(path.parent), "float32")
    text = render(tokenizer, "Plan the day.", [])
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    if ids.numel():
        network(input_ids=ids)


def _part(name: str, form: str) -> Target:
    return Target(lambda: [(_model() / name).read_bytes()], form, name, _feed_model)


TARGETS: dict[str, Target] = {
    "recipe": Target(_recipes, "yaml", "spoilt.yaml", _feed_recipe),
    "split": Target(_rows, "jsonl", "test.jsonl", _feed_rows),
    "completion": Target(_completions, "text", "completion", _feed_completion),
    "log": Target(_logs, "jsonl", "log.jsonl", _feed_log),
    "day": Target(_days, "json", "day", _feed_day),
    "calendar": Target(_calendars, "text", "day", _feed_day),
    "samples": Target(_samples, "jsonl", "samples.jsonl", _feed_samples),
    "model: config": _part("config.json", "json"),
    "model: tokenizer": _part("tokenizer.json", "json"),
    "model: chat template": _part("chat_template.jinja", "text"),
    "model: weights": _part("model.safetensors", "text"),
}


# --- the contract ----------------------------------------------------------------------------


class TooSlow(BaseException):
    """Raised where an input takes too long; no library may take it for an error of its own."""


def _late(*_: object) -> None:
    raise TooSlow


@dataclass(frozen=True)
class Outcome:
    """What became of one input: whether it was accepted, or refused and how, or what was wrong."""

    accepted: bool
    said: str = ""
    wrong: str = ""


def try_one(name: str, seed: int, folder: Path) -> Outcome:
    """Feed a target the input of a seed, the same one always."""
    rng = random.Random(f"{seed} {name} 0")
    return _fed(TARGETS[name], spoilt(rng, TARGETS[name].texts(), TARGETS[name].form), folder)


def accept_sound(name: str, folder: Path) -> None:
    """Feed what was not spoilt; it must be accepted. What reads it is imported then."""
    for text in TARGETS[name].texts():
        outcome = _fed(TARGETS[name], text, folder, seconds=0)
        assert outcome.accepted, f"{name}: {outcome}"


def _fed(target: Target, content: bytes, folder: Path, seconds: float = SECONDS) -> Outcome:
    place = Path(tempfile.mkdtemp(dir=folder))
    path = place / target.name
    path.write_bytes(content)
    before = signal.signal(signal.SIGPROF, _late)
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        target.feed(path)
        return Outcome(accepted=True)
    except UserError as error:
        said = str(error)
        if "\n" in said or len(said) > SENTENCE or str(place) not in said:
            return Outcome(False, said, f"no sentence that names the file: {said[:200]!r}")
        return Outcome(False, said)
    except TooSlow:
        return Outcome(False, wrong=f"longer than {seconds:g} s")
    except (Exception, SystemExit) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        return Outcome(False, wrong=f"{type(error).__name__} at {where}: {str(error)[:200]!r}")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        shutil.rmtree(place)
