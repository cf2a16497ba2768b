"""Feeds spoilt copies of sound inputs to whatever reads a file of a user, a library or a model.

``python -m tests.fuzzing --seconds 60 --seed 1`` shares the time among the targets and prints what
became of their inputs. Each must be accepted, with all that follows from that, or refused by a
UserError of one line; anything else, and what takes longer than a target allows, is a failure.
``--target NAME --seed S --only I`` repeats a single input.
"""

from __future__ import annotations

import argparse
import contextlib
import io
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from data.common.errors import UserError
from data.problem import Problem, problem_from_text
from data.prompts import answer, prompt
from data.published import read_published
from data.recipe import load_recipe
from data.rows import new_row, read_problems, row_to_json
from data.sections import RewardSection
from data.solver import UnprovenError, optimal_schedule, prove
from data.tiers import EFFORT
from rewards import blog
from rewards.parse import ParseFailure, parse, parse_leniently
from rewards.reward import SHAPES, totals
from rewards.verify import VALID, confirm, verify

if __package__:  # or below pytest, where the folder itself is searched
    sys.path.insert(0, str(Path(__file__).parent))

RECIPES = Path(__file__).parent.parent / "pipeline" / "recipes"
#: Bytes that this process may hold: an input that asks for more must be refused, not killed.
MEMORY = 12 << 30
#: Characters of a refusal.
SENTENCE = 1_500

# --- spoiling --------------------------------------------------------------------------------


def _nested(depth: int) -> Any:
    found: Any = []
    for _ in range(depth):
        found = [found]
    return found


#: What stands in the place of a value.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 0.5, -0.5, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**30,
    10**400, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf"),
    "", " ", "0", "x", "09:00", "24:00", "null", "NaN", "base", "sft", "grpo", "a" * 5_000,
    "\0", "\ud800", "\u202e\u0301\u0301", "😀", "<think>", "../../..", "/", "a/b", "%s{0}", "\n",
    [], {}, [[]], [{}], {"": ""}, [None], ["a", 1], _nested(60), _nested(300),
)  # fmt: skip
#: What stands in the place of bytes, or between them.
PIECES: tuple[bytes, ...] = (
    b"", b"\0", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\r", b"\n", b"\n\n", b"\xed\xa0\x80",
    b"\xe2\x80\xa8", b"\xe2\x80\xae", b"\xcc\x81" * 50, b"\xd9\xa3", b"9" * 5_000, b"NaN",
    b"Infinity", b"-1", b"1e999", b"[" * 20_000, b'{"a":' * 20_000, b"{", b"}", b"[", b"]", b",",
    b":", b'"', b"'", b"#", b"&a ", b"*a", b"!!python/object:os.system ", b"%", b"|", b"\t", b"- ",
    b"<think>", b"</think>", b"<schedule>", b"</schedule>", b"<event>", b"</event>", b"<name>",
    b"</name>", b"<start>", b"09:00", b"24:00", b"BEGIN:VEVENT\n", b"RRULE:FREQ=DAILY\n",
)  # fmt: skip


def spoilt(rng: random.Random, texts: list[bytes], form: str) -> bytes:
    """One of ``texts`` with one to four things wrong; its ``form`` says what can be: ``json``,
    ``jsonl``, ``yaml``, or ``text`` and ``bytes``, which have no inner structure."""
    content = rng.choice(texts)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        if form in ("text", "bytes") or rng.random() < 0.35:
            content = _spoilt_bytes(rng, content, rng.choice(texts))
        else:
            content = _spoilt_tree(rng, content, form)
    return content


def _spoilt_bytes(rng: random.Random, content: bytes, other: bytes) -> bytes:
    start = rng.randint(0, len(content))
    end = min(len(content), start + rng.choice((0, 1, 1, 2, 8, 40, 400)))
    here = content[start:end]
    kind = rng.randrange(7)
    if kind == 0:
        here = bytes(byte ^ 1 << rng.randrange(8) for byte in here)
    elif kind == 1:
        here = b""
    elif kind == 2:
        here *= rng.choice((2, 3, 50))
    elif kind == 3:
        at = rng.randint(0, len(other))
        here = other[at : at + rng.choice((5, 50, 500))]
    elif kind == 4:
        here = rng.choice(PIECES)
    elif kind == 5:
        here = rng.randbytes(len(here))
    else:
        return content[:start]
    return content[:start] + here + content[end:]


def _spoilt_tree(rng: random.Random, content: bytes, form: str) -> bytes:
    """A line or document with one value, key or element changed; as it was where it cannot be
    read any more."""
    with contextlib.suppress(ValueError, RecursionError, yaml.YAMLError):
        if form == "yaml":
            tree = _changed(rng, yaml.safe_load(content))
            text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
            return text.encode(errors="surrogatepass")
        if form == "json":
            return _as_json(_changed(rng, json.loads(content)))
        lines = content.splitlines()
        at = rng.randrange(len(lines)) if lines else 0
        kind = rng.randrange(8)
        if lines and kind == 0:
            lines.insert(at, rng.choice(lines))
        elif lines and kind == 1:
            del lines[at]
        elif lines:
            lines[at] = _as_json(_changed(rng, json.loads(lines[at])))
        return b"\n".join(lines) + b"\n"
    return content


def _as_json(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def _places(tree: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Every (container, key or index) of a tree."""
    if depth < 40 and isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _places(tree[key], depth + 1)


def _changed(rng: random.Random, tree: Any) -> Any:
    places = list(_places(tree))
    if not places or rng.random() < 0.02:
        return rng.choice(VALUES)
    inside, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind < 3:
        inside[key] = rng.choice(VALUES)
    elif kind == 3:
        del inside[key]
    elif kind == 4:
        other, its = rng.choice(places)
        inside[key] = json.loads(json.dumps(other[its]))
    elif kind == 5:
        inside[key] = rng.choice(([inside[key]], {"a": inside[key]}, str(inside[key])))
    elif kind == 6 and isinstance(inside, dict):
        inside[str(key) + rng.choice("sx ") if rng.random() < 0.5 else "new"] = inside.pop(key)
    elif isinstance(inside[key], int | float) and not isinstance(inside[key], bool):
        inside[key] *= rng.choice((-1, 0, 10, 1000, 10**9, 0.5))
    else:
        inside[key] = rng.choice(VALUES)
    return tree


# --- targets ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """Something that reads what is not ours.

    Attributes:
        texts: sound inputs.
        form: of them, see ``spoilt``.
        feed: reads one in a folder of its own, and does with what was accepted what follows.
        seconds: that one input may take.
        share: of the time, beside the others.
    """

    texts: Callable[[], list[bytes]]
    form: str
    feed: Callable[[bytes, Path], None]
    seconds: float = 2.0
    share: float = 1.0


def _recipes() -> list[bytes]:
    return [path.read_bytes() for path in sorted(RECIPES.glob("*.yaml"))]


def _feed_recipe(content: bytes, folder: Path) -> None:
    from pipeline.train import settings

    path = folder / "spoilt.yaml"
    for recipe in RECIPES.glob("*.yaml"):  # those that it may extend
        shutil.copy(recipe, folder)
    path.write_bytes(content)
    with _naming(path):
        recipe = load_recipe(path)
        settings.check_settings(recipe)


@cache
def _problems() -> list[Problem]:
    from conftest import day, tier_problems

    tiers = ("blog", "dense", "trap", "rules", "gap", "at_most")
    return [day(), *(problem for tier in tiers for problem in tier_problems(tier, 4, 9))]


def _rows() -> list[bytes]:
    rows = []
    for i, problem in enumerate(_problems()):
        rows.append(row_to_json(new_row(f"test-{i}", "test", "dense", problem, bool(i % 2))))
    return [b"".join(_as_json(row) + b"\n" for row in rows[at : at + 3]) for at in range(8)]


def _feed_rows(content: bytes, folder: Path) -> None:
    path = folder / "test.jsonl"
    path.write_bytes(content)
    with _naming(path):
        rows = read_problems(path)
    for row in rows:
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
        if best:
            assert problem.is_feasible(best)


def _feed_problem(content: bytes, folder: Path) -> None:
    _use(problem_from_text(content.decode(errors="surrogateescape")))


def _published() -> list[bytes]:
    rows = [
        {"index": i, **blog.row_of(problem), "prompt": "Plan the day."}
        for i, problem in enumerate(_problems()[:9])
    ]
    return [b"".join(_as_json(row) + b"\n" for row in rows[at : at + 4]) for at in range(6)]


def _feed_published(content: bytes, folder: Path) -> None:
    path = folder / "events.jsonl"
    path.write_bytes(content)
    with _naming(path):
        found, rejected = read_published(str(path))
    assert all("\n" not in reason for reason in rejected)
    for problem, row in found:
        _use(problem)
        blog.judge(row, answer(optimal_schedule(problem), None))


@cache
def _completions() -> list[bytes]:
    from conftest import CORRUPTIONS

    found = []
    for problem in _problems():
        gold = optimal_schedule(problem)
        found.append(answer(gold, None).encode())
        made = (corrupt(problem, gold) for corrupt in CORRUPTIONS.values())
        found += [one[0].encode(errors="surrogatepass") for one in made if one]
    return found


def _feed_completion(content: bytes, folder: Path) -> None:
    text = content.decode(errors="surrogateescape")
    # Mostly the day that gold was of: a mutated answer to another one is all unknown events.
    known = [p for p in _problems() if p.events[0].name in text] or _problems()
    problem = known[len(text) % len(known)]
    column = problem.text
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
        (paid,) = totals(RewardSection(shape), [column], [text])
        if shape != "blog":
            assert 0 <= paid <= sum(about.weights.values()) + 1e-9, f"{shape} pays {paid}"
    # The published reward knows no further rules, and a day without them has a greater optimum.
    if len(problem.rules) == 3:
        paid = sum(blog.rewards(blog.row_of(problem), text).values())
        assert 0 <= paid <= 100 + 1e-9, f"the published reward pays {paid}"


def _logs() -> list[bytes]:
    from tests.synthetic import collapsed, grpo_log, hacked, sft_log

    found = []
    for rows in (grpo_log(1), sft_log(2), hacked(3), collapsed(4)):
        rows = list(rows)[:60]
        found.append(b"".join(_as_json(row) + b"\n" for row in rows))
    return found


def _feed_log(content: bytes, folder: Path) -> None:
    from data.common.console import plain_console
    from pipeline.health.logs import examine
    from pipeline.health.report import as_json, print_patients

    path = folder / "log.jsonl"
    path.write_bytes(content)
    with _naming(path):
        patients = [examine("arm", path)]
    json.loads(as_json(patients))
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")):
        print_patients(patients, plain_console())


def _states() -> list[bytes]:
    return [
        _as_json({"global_step": 9, "log_history": list(map(json.loads, log.splitlines()))})
        for log in _logs()
    ]


def _feed_state(content: bytes, folder: Path) -> None:
    from pipeline.health.logs import examine
    from pipeline.health.report import as_json

    path = folder / "trainer_state.json"
    path.write_bytes(content)
    with _naming(path):
        json.loads(as_json([examine("arm", path)]))


def _days() -> list[bytes]:
    typed = (
        b"Standup 9-9:30 !\n- Lunch (12:00 - 13:00)\n# no event\n14.00 to 15.30 Review\nRun 6-7pm"
    )
    listed = [
        {"name": "Standup", "start": "9:00", "end": "9:30", "priority": True},
        {"name": "Lunch", "start": "12:00", "end": "13:00"},
    ]
    found = [typed, typed.replace(b"\n", b"\r\n"), _as_json(listed)]
    found += [_as_json(problem.to_json()) for problem in _problems()[::3]]
    return [*found, *_rows()[:2], *_published()[:2]]


def _feed_day(content: bytes, folder: Path) -> None:
    from eval.day.days import Wanted, prove_day, read_day

    for wanted in (Wanted(), Wanted(date=date(2026, 3, 2)), Wanted(priorities=("standup",))):
        # Only the plain question decides; the others have a flag that may not fit, and is named.
        with contextlib.suppress(UserError) if wanted != Wanted() else _naming(Path("the day")):
            day = read_day(content, "the day", wanted)
            assert all("\n" not in note for note in day.notes)
            problem, best = prove_day(day.problem, "the day")
            verify(problem, answer(best, None))
            _use(problem)


def _calendars() -> list[bytes]:
    from tests.test_ics import APPLE, GOOGLE, OUTLOOK

    return [text.encode() for text in (GOOGLE, OUTLOOK, APPLE)]


def _samples() -> list[bytes]:
    rows = []
    for i, problem in enumerate(_problems()[:3]):
        for number, text in enumerate((answer(optimal_schedule(problem), None), "no idea")):
            rows.append(
                {"id": f"test-{i}", "arm": "base", "sample": number, "completion": text,
                 "finish_reason": "stop", "tokens": 9}
            )  # fmt: skip
    return [b"".join(_as_json(row) + b"\n" for row in rows), _as_json(rows[0]) + b"\n"]


def _feed_samples(content: bytes, folder: Path) -> None:
    from data.run import VERDICTS
    from eval.answers.files import ProblemFile, read_samples, read_verdicts
    from eval.answers.judge import judge_arm, score_rows
    from eval.stats.summary import tally

    path = folder / "samples.jsonl"
    path.write_bytes(content)
    problems = {f"test-{i}": problem for i, problem in enumerate(_problems()[:3])}
    with _naming(path):
        rows = list(judge_arm(problems, path))
    counts = tally(rows, dict.fromkeys(problems, "dense"))
    assert counts.samples.sum() == len(rows)
    assert len(list(read_verdicts(path.with_name(VERDICTS), problems))) == len(rows)
    source = folder / "test.jsonl"
    source.write_bytes(_rows()[0])
    file = ProblemFile(str(source))
    list(score_rows(file.problems()[0], read_samples(path, file)))


def _verdicts() -> list[bytes]:
    from eval.answers.judge import score_rows

    problems = {f"test-{i}": problem for i, problem in enumerate(_problems()[:3])}
    rows = [json.loads(line) for line in _samples()[0].splitlines()]
    return [b"".join(_as_json(row) + b"\n" for row in score_rows(problems, rows))]


def _feed_verdicts(content: bytes, folder: Path) -> None:
    from eval.answers.files import answered, read_verdicts
    from eval.show.showcase import choose_answers, drawn_answer
    from eval.stats.summary import tally

    path = folder / "verdicts.jsonl"
    path.write_bytes(content)
    samples = folder / "samples.jsonl"
    samples.write_bytes(_samples()[0])
    problems = {f"test-{i}": problem for i, problem in enumerate(_problems()[:3])}
    tiers = dict.fromkeys(problems, "dense")
    with _naming(path):
        tally(read_verdicts(path, tiers), tiers)
        choice = choose_answers({"base": answered(samples, tiers)}, tiers, 1)
    for row in choice.answers:
        drawn_answer(problems[row["id"]], row)


@cache
def _model() -> Path:
    from tiny import save_model

    return save_model(Path(tempfile.mkdtemp()) / "model", "qwen3", hidden=16)


def _feeding(part: str) -> Callable[[bytes, Path], None]:
    """What loads a model of which one file is spoilt."""

    def feed(content: bytes, folder: Path) -> None:
        from pipeline.model.decode import render
        from pipeline.model.load import load_model, quiet

        model = Path(shutil.copytree(_model(), folder / "model"))
        (model / part).write_bytes(content)
        quiet()
        with _naming(model):
            network, tokenizer = load_model(str(model), "float32")
        text = render(tokenizer, "Plan the day.", [])
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        if ids.numel():
            network(input_ids=ids)

    return feed


def _part(name: str, form: str) -> Target:
    return Target(lambda: [(_model() / name).read_bytes()], form, _feeding(name), 20.0, 1.5)


TARGETS: dict[str, Target] = {
    "recipe": Target(_recipes, "yaml", _feed_recipe, 5.0, 2.0),
    "problem": Target(
        lambda: [_as_json(p.to_json()) for p in _problems()], "json", _feed_problem, 5.0
    ),
    "split": Target(_rows, "jsonl", _feed_rows, 5.0),
    "published": Target(_published, "jsonl", _feed_published, 5.0),
    "completion": Target(_completions, "text", _feed_completion, 2.0, 2.0),
    "log": Target(_logs, "jsonl", _feed_log),
    "trainer state": Target(_states, "json", _feed_state),
    "day": Target(_days, "json", _feed_day, 20.0),
    "calendar": Target(_calendars, "text", _feed_day, 20.0),
    "samples": Target(_samples, "jsonl", _feed_samples),
    "verdicts": Target(_verdicts, "jsonl", _feed_verdicts),
    "model: config": _part("config.json", "json"),
    "model: tokenizer": _part("tokenizer.json", "json"),
    "model: tokenizer config": _part("tokenizer_config.json", "json"),
    "model: chat template": _part("chat_template.jinja", "text"),
    "model: weights": _part("model.safetensors", "bytes"),
}


# --- the contract ----------------------------------------------------------------------------


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """A refusal within must name ``path``."""
    try:
        yield
    except UserError as error:
        if str(path) not in str(error):
            raise AssertionError(f"{error} does not name {path.name}") from None
        raise


class TooSlow(BaseException):
    """Raised where an input takes too long; no library may take it for an error of its own."""


def _late(*_: object) -> None:
    raise TooSlow


@dataclass(frozen=True)
class Outcome:
    """What became of one input: whether it was accepted, or refused and how, or what was wrong."""

    accepted: bool
    said: str
    wrong: str
    seconds: float


def try_one(name: str, seed: int, index: int, folder: Path) -> Outcome:
    """Feed input ``index`` of a target, the same one always."""
    rng = random.Random(f"{seed} {name} {index}")
    content = spoilt(rng, TARGETS[name].texts(), TARGETS[name].form)
    return _fed(TARGETS[name], content, folder, TARGETS[name].seconds)


def accept_sound(name: str, folder: Path) -> None:
    """Feed what was not spoilt; it must be accepted. What reads it is imported then."""
    for text in TARGETS[name].texts():
        outcome = _fed(TARGETS[name], text, folder, 0)
        assert outcome.accepted, f"{name}: {outcome}"


def _fed(target: Target, content: bytes, folder: Path, seconds: float) -> Outcome:
    place = Path(tempfile.mkdtemp(dir=folder))
    accepted, said, wrong = False, "", ""
    before = signal.signal(signal.SIGALRM, _late)
    started = time.perf_counter()
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        target.feed(content, place)
        accepted = True
    except UserError as error:
        said = str(error)
        if "\n" in said or not said.strip() or len(said) > SENTENCE:
            wrong = f"no sentence: {said[:200]!r} ({len(said)} characters)"
    except TooSlow:
        wrong = f"longer than {seconds:g} s"
    except (Exception, SystemExit) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        wrong = f"{type(error).__name__} at {where}: {str(error)[:200]!r}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        took = time.perf_counter() - started
        shutil.rmtree(place)
    return Outcome(accepted, said, wrong, took)


@dataclass
class Tally:
    """What became of the inputs of one target."""

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    failures: int = 0
    slowest: float = 0.0

    def add(self, outcome: Outcome) -> None:
        self.inputs += 1
        self.failures += bool(outcome.wrong)
        self.accepted += outcome.accepted
        self.refused += not (outcome.accepted or outcome.wrong)
        self.slowest = max(self.slowest, outcome.seconds)


def table(tallies: dict[str, Tally]) -> str:
    """In markdown, with a line for all."""
    lines = [
        "| target | inputs | accepted | refused | slowest ms | failures |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    every = Tally()
    for name, one in tallies.items():
        cells = (one.inputs, one.accepted, one.refused, round(1000 * one.slowest), one.failures)
        lines.append(f"| {name} | " + " | ".join(f"{cell:,}" for cell in cells) + " |")
        for key in ("inputs", "accepted", "refused", "failures"):
            setattr(every, key, getattr(every, key) + getattr(one, key))
        every.slowest = max(every.slowest, one.slowest)
    cells = (every.inputs, every.accepted, every.refused, round(1000 * every.slowest))
    lines.append("| all | " + " | ".join(f"{cell:,}" for cell in (*cells, every.failures)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--only", type=int, help="repeat this input alone, and say its refusal")
    parser.add_argument("--say", action="store_true", help="print every refusal")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    shares = sum(TARGETS[name].share for name in arguments.target)
    tallies: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory() as place:
        for name in arguments.target:
            accept_sound(name, Path(place))
            tallies[name] = Tally()
            until = time.monotonic() + arguments.seconds * TARGETS[name].share / shares
            index = arguments.only or 0
            while True:
                outcome = try_one(name, arguments.seed, index, Path(place))
                tallies[name].add(outcome)
                if outcome.wrong:
                    print(f"{name}, seed {arguments.seed}, input {index}: {outcome.wrong}")
                elif arguments.say or arguments.only is not None:
                    print(f"{name} {index}: {outcome.said or 'accepted'}")
                index += 1
                if arguments.only is not None or time.monotonic() > until:
                    break
            sys.stdout.flush()
    print(table(tallies))
    sys.exit(min(1, sum(one.failures for one in tallies.values())))


if __name__ == "__main__":
    main()
