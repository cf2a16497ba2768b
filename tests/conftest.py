"""What several tests share: small problems, the third witness of an optimum, and the corpus of
right and wrong answers."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import chdir
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import settings

from data.clock import CLOCK, MINUTE
from data.common.errors import UserError
from data.event import Event, Schedule
from data.problem import Problem
from data.prompts import answer, narration, schedule_xml
from data.rules import (
    BASE_RULES,
    AtLeastOne,
    AtMost,
    AtMostOne,
    Before,
    Break,
    Budget,
    Gap,
    MustInclude,
    Rule,
    Travel,
)
from data.solver import optimal_schedule
from data.tiers import TIERS, Tier

# The same examples on every machine and in every run.
settings.register_profile("slotwise", derandomize=True, deadline=None, database=None)
settings.load_profile("slotwise")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Started in the background, tests and what they start would ignore Ctrl-C, as no terminal does.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
RECIPES, EMBEDDED = ROOT / "pipeline" / "recipes", ROOT / "pipeline" / "embedded"
TINY = RECIPES / "tiny.yaml"
SHARED = ROOT.parent / "shared"
BLOG, CASES = SHARED / "blog", SHARED / "cases"
needs_blog = pytest.mark.skipif(not BLOG.is_dir(), reason="lies beside the project, not in it")
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="lies beside the project, not in it")


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A run without models, see ``scripted``."""
    from scripted import World

    return World(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tiny model, ``qwen3``, and the data of a run, made once."""
    from tiny import save_model, write_recipe

    from data import make

    place = tmp_path_factory.mktemp("small")
    with chdir(place):
        make.run(write_recipe(place, save_model(place / "qwen3", "qwen3")), force=False)
    return place


def refusal_of(call: Callable[[], object]) -> str:
    """The one sentence in which a call is refused."""
    with pytest.raises(UserError) as refused:
        call()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def python(
    *arguments: object, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Another process's run of python, which finds the project's modules."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


def raising(error: BaseException) -> Callable[[], None]:
    """A command that ends so."""

    def main() -> None:
        raise error

    return main


def xml(*events: Sequence[str]) -> str:
    """A schedule of events given as name, start and end, whether there are such times or not."""
    body = "".join(
        f"<event>\n<name>{name}</name>\n<start>{start}</start>\n<end>{end}</end>\n</event>\n"
        for name, start, end in events
    )
    return f"<schedule>\n{body}</schedule>"


def kinds(broken: Iterable[str]) -> set[str]:
    """The kinds of violations, without their events."""
    return {text.partition(":")[0] for text in broken}


def within(limit: float, work: Callable[[], object]) -> bool:
    """Whether a work takes less than so many seconds of CPU in one of three tries: other processes
    may have the machine busy."""

    def seconds() -> float:
        started = time.process_time()
        work()
        return time.process_time() - started

    return any(seconds() < limit for _ in range(3))


def day() -> Problem:
    """Four touching events are optimal (180), Band and Chess feasible (150)."""
    events = (
        Event(540, 600, "Art"),
        Event(570, 660, "Band"),
        Event(600, 630, "Drill"),
        Event(630, 660, "Echo"),
        Event(660, 690, "Chess"),
    )
    return Problem(events, ("Chess",), optimum=180)


def random_problem(
    rng: random.Random, most: int = 8, rules: tuple[Rule, ...] = BASE_RULES
) -> Problem:
    """1 to ``most`` events in two crowded hours: many touch, coincide or hold each other."""
    events = []
    for i in range(rng.randint(1, most)):
        start = 480 + 5 * rng.randrange(18)
        events.append(Event(start, start + 5 * rng.randint(1, 8), f"E{i}"))
    priorities = rng.sample([e.name for e in events], rng.randint(0, len(events)))
    return Problem(tuple(events), tuple(priorities), rules)


def drawn_with_rules(most: int, seed: int) -> Iterator[Problem]:
    """Without end: crowded mornings of 3 to ``most`` events with 1 to 5 further rules, which not
    every one has a schedule for."""
    rng = random.Random(f"rules {seed}")
    tier = Tier(events=(3, most), window=("09:00", "13:00"), durations=(15, 90, 15), rules=(1, 5))
    while True:
        yield tier.sample(rng)


def rule_problems(count: int, most: int, seed: int = 0) -> list[Problem]:
    """Those that have a schedule, with their optimum by brute force."""
    sound = (problem for problem in drawn_with_rules(most, seed) if brute_force(problem)[2])
    return [problem.proven(brute_force(problem)[0]) for problem in islice(sound, count)]


#: An optimal schedule, found once.
gold_of = cache(optimal_schedule)


def _proven(tier: str, seed: int) -> Iterator[Problem]:
    rng = random.Random(f"{tier} {seed}")
    while True:
        problem = TIERS[tier].sample(rng)
        best = optimal_schedule(problem)
        if best is not None:
            yield problem.proven(problem.objective(best))


@cache
def _drawn(tier: str, seed: int) -> tuple[list[Problem], Iterator[Problem]]:
    """Those that were asked for so far, and all further ones."""
    return [], _proven(tier, seed)


def tier_problems(tier: str, count: int, seed: int = 0) -> tuple[Problem, ...]:
    """The first problems of a tier that have a schedule, each with its optimum."""
    found, further = _drawn(tier, seed)
    found.extend(islice(further, max(0, count - len(found))))
    return tuple(found[:count])


def minutes(event: Event) -> int:
    """The minutes an event takes, as bits: two events overlap where these meet. A definition of
    its own, so that an error in the code's comparisons of times cannot hide."""
    return _span(event.start, event.end)


def _span(start: int, end: int) -> int:
    return (1 << end) - (1 << start)


#: Each further rule's demand on a schedule (events of the day, each once), said in minutes: a
#: definition of its own, since a rule's plain check and its constraint share what they compare.
KEPT: dict[type[Rule], Callable[[Rule, Schedule], bool]] = {
    Gap: lambda rule, chosen: (
        not any(_span(a.end, a.end + rule.minutes) & 1 << b.start for a in chosen for b in chosen)
    ),
    Travel: lambda rule, chosen: (
        not any(
            _span(a.end, a.end + rule.minutes) & 1 << b.start
            for a in chosen
            for b in chosen
            if (a.name in rule.here and b.name in rule.there)
            or (a.name in rule.there and b.name in rule.here)
        )
    ),
    Before: lambda rule, chosen: all(
        range(first.start, first.end)[-1] < then.start
        for first in chosen
        for then in chosen
        if (first.name, then.name) == (rule.first, rule.then)
    ),
    AtMostOne: lambda rule, chosen: sum(e.name in rule.group for e in chosen) in (0, 1),
    AtLeastOne: lambda rule, chosen: any(e.name in rule.group for e in chosen),
    MustInclude: lambda rule, chosen: rule.event in [e.name for e in chosen],
    AtMost: lambda rule, chosen: not chosen[rule.count :],
    Budget: lambda rule, chosen: sum(minutes(e).bit_count() for e in chosen) <= rule.minutes,
    Break: lambda rule, chosen: any(
        not any(_span(start, start + rule.minutes) & minutes(e) for e in chosen)
        for start in range(MINUTE[rule.start], MINUTE[rule.end] - rule.minutes + 1)
    ),
}


def kept(problem: Problem, schedule: Schedule) -> bool:
    """Whether a schedule keeps the problem's further rules, not by way of the code under test."""
    return all(KEPT[type(r)](r, schedule) for r in problem.rules if r not in BASE_RULES)


def weighted(problem: Problem, event: Event) -> int:
    """Weighted minutes, not by way of the code under test."""
    return (event.end - event.start) * (2 if event.name in problem.priorities else 1)


def feasible_schedules(problem: Problem) -> Iterator[Schedule]:
    """Every feasible schedule but the empty one, each once, by brute force."""

    def extend(taken: Schedule, busy: int, left: tuple[Event, ...]) -> Iterator[Schedule]:
        for i, event in enumerate(left):
            if not busy & minutes(event):
                longer = (*taken, event)
                if kept(problem, longer):
                    yield longer
                yield from extend(longer, busy | minutes(event), left[i + 1 :])

    return extend((), 0, tuple(sorted(problem.events)))


@cache
def brute_force(problem: Problem) -> tuple[int, int, int]:
    """(optimum, schedules that reach it, feasible schedules); (0, 0, 0) where there is none."""
    values = [sum(weighted(problem, e) for e in s) for s in feasible_schedules(problem)]
    best = max(values, default=0)
    return best, values.count(best), len(values)


# --- the corpus: answers and what must be said of them ---------------------------------------

#: Makes a completion and the violations it must be given, or None where a problem has no such one.
Corruption = Callable[[Problem, Schedule], tuple[str, tuple[str, ...]] | None]
CORRUPTIONS: dict[str, Corruption] = {}
#: Makes a completion that must be judged optimal.
HARMLESS: dict[str, Callable[[Problem, Schedule], str]] = {}


def _schedule(problem: Problem, schedule: Schedule, *broken: str) -> tuple[str, tuple[str, ...]]:
    return answer(schedule, narration(problem, problem.events)), broken


def _renamed(name: str, change: Callable[[str], str]) -> None:
    def corrupt(problem: Problem, gold: Schedule) -> tuple[str, tuple[str, ...]]:
        first, *rest = gold
        other = change(first.name)
        assert other != first.name
        changed = (Event(first.start, first.end, other), *rest)
        return _schedule(problem, changed, f"unknown_event: {other}")

    CORRUPTIONS[name] = corrupt


_renamed("unknown event", lambda name: "Nothing of the kind")
_renamed("name in capitals", str.swapcase)
_renamed("letter beyond the name", lambda name: name + "s")
_renamed("letter missing", lambda name: name[:-1])
_renamed("dot after the name", lambda name: name + ".")
_renamed("empty name", lambda name: "")
_renamed(
    "Cyrillic look-alike", lambda name: name.translate(str.maketrans("aeiocypxA", "аеіосурхА"))
)
_renamed("zero-width blank in the name", lambda name: name[0] + "\u200b" + name[1:])
_renamed("hard blank before the name", lambda name: "\u00a0" + name)
_renamed("full-width letter", lambda name: chr(ord(name[0]) + 0xFEE0) + name[1:])
_renamed("priority said in the name", lambda name: name + " (priority)")


def _retimed(name: str, change: Callable[[Event], tuple[int, int]]) -> None:
    def corrupt(problem: Problem, gold: Schedule) -> tuple[str, tuple[str, ...]]:
        *rest, last = gold
        changed = (*rest, Event(*change(last), last.name))
        return _schedule(problem, changed, f"altered_time: {last.name}")

    CORRUPTIONS[name] = corrupt


_retimed("start a minute late", lambda e: (e.start + 1, e.end))
_retimed("end a minute early", lambda e: (e.start, e.end - 1))
_retimed("end a minute late", lambda e: (e.start, e.end + 1))
_retimed("start and end exchanged", lambda e: (e.end, e.start))
_retimed("end at the start", lambda e: (e.start, e.start))


def corruption(function: Corruption) -> Corruption:
    CORRUPTIONS[function.__name__.replace("_", " ")] = function
    return function


@corruption
def duplicate(problem, gold):
    if len(gold) == len(problem.events):
        return None  # one more than all events has another name, too_many_events
    return _schedule(problem, (*gold, gold[-1]), f"duplicate: {gold[-1].name}")


@corruption
def more_events_than_there_are(problem, gold):
    many = (gold[0],) * (len(problem.events) + 1)
    named = (f"too_many_events: {len(many)} of {len(problem.events)}",)
    return _schedule(problem, many, *named, *[f"duplicate: {gold[0].name}"] * (len(many) - 1))


@corruption
def swapped_order(problem, gold):
    if len(gold) < 2:
        return None
    b, a, *rest = gold
    return _schedule(problem, (a, b, *rest), f"not_chronological: {a.name} / {b.name}")


@corruption
def overlap(problem, gold):
    busy = sum(map(minutes, gold))
    others = [e for e in problem.events if e not in gold and minutes(e) & busy]
    if not others:
        return None
    extra = others[0]
    answered = tuple(sorted((*gold, extra)))
    place = answered.index(extra)
    broken = [
        f"overlap: {e.name} / {extra.name}" if i < place else f"overlap: {extra.name} / {e.name}"
        for i, e in enumerate(answered)
        if e != extra and minutes(e) & minutes(extra)
    ]
    return _schedule(problem, answered, *broken)


@corruption
def empty(problem, gold):
    return _schedule(problem, (), "empty")


@corruption
def gold_only_in_the_reasoning(problem, gold):
    return answer(gold, "").replace("</schedule>", "</schedule></think>"), ("no_schedule",)


@corruption
def gold_in_the_reasoning_and_a_bad_final_answer(problem, gold):
    return answer((), schedule_xml(gold)), ("empty",)


@corruption
def gold_before_an_end_of_reasoning_and_a_bad_final_answer(problem, gold):
    return f"{schedule_xml(gold)}</think><schedule></schedule>", ("empty",)


def _text(name: str, reason: str, change: Callable[[str], str]) -> None:
    """A change to the text of gold that makes it unreadable."""

    def corrupt(problem: Problem, gold: Schedule) -> tuple[str, tuple[str, ...]]:
        text = answer(gold, narration(problem, gold))
        changed = change(text)
        assert changed != text
        return changed, (reason,)

    CORRUPTIONS[name] = corrupt


def _swap(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new, 1)


_text("no answer at all", "no_schedule", lambda text: "")
_text("no schedule", "no_schedule", lambda text: text.partition("<schedule>")[0])
_text("events without a schedule", "no_schedule", _swap("<schedule>", ""))
_text("schedule tag in capitals", "no_schedule", _swap("<schedule>", "<SCHEDULE>"))
_text("schedule tag with an attribute", "no_schedule", _swap("<schedule>", '<schedule day="1">'))
_text("unterminated schedule", "unterminated", _swap("</schedule>", ""))
_text("cut in the last tag", "unterminated", lambda text: text[:-1])
_text("cut in the middle", "unterminated", lambda text: text[: text.index("</name>")])
_text("unterminated reasoning", "unterminated_reasoning", _swap("</think>", ""))
_text("reasoning taken up again", "unterminated_reasoning", lambda text: text + "<think>")
_text("two schedules", "multiple_schedules", lambda text: text + text.partition("</think>")[2])
_text(
    "bad schedule before the good one",
    "multiple_schedules",
    _swap("</think>", "</think><schedule></schedule>"),
)
_text(
    "good schedule before a bad one",
    "multiple_schedules",
    lambda text: text + "<schedule></schedule>",
)
_text("schedule in a schedule", "multiple_schedules", _swap("<schedule>", "<schedule><schedule>"))

for _tag in ("name", "start", "end", "event"):
    _text(f"missing </{_tag}>", "malformed_event", _swap(f"</{_tag}>", ""))
    _text(f"missing <{_tag}>", "malformed_event", _swap(f"<{_tag}>", ""))
_text("junk before the first event", "malformed_event", _swap("<event>", "First: <event>"))
_text("junk after an event", "malformed_event", _swap("</event>", "</event>,"))
_text("junk in an event", "malformed_event", _swap("</name>", "</name> at "))
_text("hard blank between events", "malformed_event", _swap("</event>", "</event>\u00a0"))
_text("nested event", "malformed_event", _swap("<event>", "<event><event>"))
_text("nested tag in a name", "malformed_event", _swap("<name>", "<name><b>"))
_text("tag with an attribute", "malformed_event", _swap("<event>", '<event id="1">'))
_text("event tag in capitals", "malformed_event", _swap("<event>", "<Event>"))
_text("further tag", "malformed_event", _swap("</event>", "<place>here</place></event>"))
_text("name twice", "malformed_event", _swap("<name>", "<name>x</name><name>"))
_text("comment", "malformed_event", _swap("<event>", "<!-- first --><event>"))
_text("code fence in the schedule", "malformed_event", _swap("<schedule>", "<schedule>\n```xml\n"))
_text("prose for a schedule", "malformed_event", lambda text: "<schedule>nothing fits</schedule>")


def _time(name: str, change: Callable[[str], str]) -> None:
    """A change to the first start that makes it no time."""

    def corrupt(problem: Problem, gold: Schedule) -> tuple[str, tuple[str, ...]]:
        good = CLOCK[gold[0].start]
        text = schedule_xml(gold).replace(f">{good}<", f">{change(good)}<", 1)
        return text, ("malformed_time",)

    CORRUPTIONS[f"time {name}"] = corrupt


def digits(zero: int) -> Callable[[str], str]:
    """The same time in another script's digits, from the code point of its zero."""
    return lambda good: good.translate({ord("0") + i: zero + i for i in range(10)})


_time("24:00", lambda good: "24:00")
_time("9:30", lambda good: "9:30")
_time("09:60", lambda good: "09:60")
_time("99:99", lambda good: "99:99")
_time("-1:00", lambda good: "-1:00")
_time("empty", lambda good: "")
_time("in full-width digits", digits(0xFF10))
_time("in Arabic digits", digits(0x0660))
_time("in bold mathematical digits", digits(0x1D7CE))
_time("with a full-width colon", lambda good: good.replace(":", "："))
_time("with seconds", lambda good: good + ":00")
_time("with a.m.", lambda good: good + " AM")
_time("with a dot", lambda good: good.replace(":", "."))
_time("without a colon", lambda good: good.replace(":", ""))
_time("with blanks inside", lambda good: good.replace(":", " : "))
_time("with a sign", lambda good: "+" + good)
_time("with a third digit", lambda good: "0" + good)
_time("with a hard blank", lambda good: good + "\u00a0")


def harmless(name: str, change: Callable[[str], str]) -> None:
    """A change to the text of gold that leaves it optimal."""
    HARMLESS[name] = lambda problem, gold: change(answer(gold, narration(problem, gold)))


harmless("gold itself", lambda text: text)
harmless("no reasoning", lambda text: text.partition("</think>\n")[2])
harmless("prose before", _swap("</think>", "</think>Here is the best day, as <b>XML</b>:"))
harmless("prose after", lambda text: text + "\nThis fills 3 < 4 hours. <event>Enjoy!</event>")
harmless("code fence", lambda text: text.replace("<schedule>", "```xml\n<schedule>") + "\n```\n")
harmless("no line breaks", lambda text: text.replace("\n", ""))
harmless("Windows line ends", lambda text: text.replace("\n", "\r\n"))
harmless("blanks between tags", lambda text: text.replace(">\n<", "> \t\n\n  <"))
harmless("blanks in tags", lambda text: text.replace("</", " </").replace("<name>", "<name>\n"))
harmless("reasoning in two parts", lambda text: "<think>first</think>" + text)
harmless("decoy in the reasoning", _swap("<think>", "<think><schedule></schedule>"))
harmless("unterminated decoy in the reasoning", _swap("<think>", "<think><schedule><event>"))
harmless("start of the reasoning in the prompt", _swap("<think>", ""))
harmless("end of the schedule twice", lambda text: text + "</schedule>")
