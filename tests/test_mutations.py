"""That the tests can fail: a verifier made weaker on purpose is noticed by the corpus.

The panel is every corruption and every harmless form of one day's gold, and a few answers beside;
each weakening below must change what is said of at least the cases it is about.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from conftest import CORRUPTIONS, HARMLESS, day

import data.problem
import rewards.parse
import rewards.verify
from data.problem import MINUTE, Event
from data.prompts import answer, schedule_xml
from data.rules import Chronological, NoOverlap, NotEmpty
from data.solver import interval_optimum
from rewards.verify import Status, Verdict, verify

Weakening = Callable[[pytest.MonkeyPatch], None]


def panel() -> list[str]:
    """Names of the cases that are not judged as they must be."""
    problem = day()
    gold = interval_optimum(problem)
    optimal = Verdict(Status.OPTIMAL, (), 180, 180)
    art, band, _, _, chess = problem.events
    cases = {name: (make(problem, gold), optimal) for name, make in HARMLESS.items()}
    cases["half of gold"] = schedule_xml(gold[:2]), Verdict(Status.FEASIBLE, (), 90, 180)
    cases["second best"] = schedule_xml((band, chess)), Verdict(Status.FEASIBLE, (), 150, 180)
    cases["one event"] = answer((art,), "so"), Verdict(Status.FEASIBLE, (), 60, 180)
    for name, make in CORRUPTIONS.items():
        completion, broken = make(problem, gold)
        read = isinstance(PARSE(completion), tuple)
        status = Status.INFEASIBLE if read else Status.UNPARSABLE
        cases[name] = completion, Verdict(status, broken, 0, 180)
    wrong = []
    for name, (completion, expected) in cases.items():
        try:
            verdict = verify(problem, completion)
        except (AssertionError, KeyError):  # it beats the optimum, or has no value: noticed too
            verdict = None
        if verdict != expected:
            wrong.append(name)
    return wrong


PARSE = rewards.parse.parse
VIOLATIONS = rewards.verify.violations
VERIFY_SCHEDULE = rewards.verify.verify_schedule


def test_the_panel_passes_as_the_code_stands():
    assert panel() == []


def parse_as(change: Callable[[str], str]) -> Weakening:
    """Read a changed text."""
    return lambda patch: patch.setattr("rewards.verify.parse", lambda text: PARSE(change(text)))


def read_as(change: Callable[[tuple[Event, ...]], tuple[Event, ...]]) -> Weakening:
    """Judge a changed schedule."""

    def parse(text: str):
        found = PARSE(text)
        return change(found) if isinstance(found, tuple) else found

    return lambda patch: patch.setattr("rewards.verify.parse", parse)


def overlook(kind: str) -> Weakening:
    """Leave one kind of violation unsaid."""
    return lambda patch: patch.setattr(
        "rewards.verify.violations",
        lambda *pair: tuple(v for v in VIOLATIONS(*pair) if not v.startswith(kind)),
    )


def rule_says(kind: type, says: Callable) -> Weakening:
    return lambda patch: patch.setattr(kind, "violations", says)


def times_by(read: Callable[[str], int]) -> Weakening:
    """Take for a time whatever ``read`` makes minutes of, instead of looking it up."""

    class Lenient(dict):
        def __contains__(self, text):
            try:
                return 0 <= read(text) <= 1440
            except ValueError:
                return False

        def __getitem__(self, text):
            return read(text)

    return lambda patch: patch.setattr("rewards.parse.MINUTE", Lenient(MINUTE))


def first_two_numbers(text: str) -> int:
    hours, minutes = re.split(r"\D", text)[:2]
    return 60 * int(hours) + int(minutes)


def touching_is_overlap(rule, schedule):
    for a, b in combinations(schedule, 2):
        if a.start <= b.end and b.start <= a.end and a.name != b.name:
            yield f"overlap: {a.name} / {b.name}"


def only_neighbours_overlap(rule, schedule):
    for a, b in pairwise(schedule):
        if b.start < a.end and a.start < b.end and a.name != b.name:
            yield f"overlap: {a.name} / {b.name}"


def nothing(rule, schedule):
    return iter(())


def find_events(body: str):
    """Every well-formed event, whatever stands between them."""
    return tuple(
        Event(MINUTE[m[2].strip()], MINUTE[m[3].strip()], m[1].strip())
        for m in rewards.parse._EVENT.finditer(body)
        if m[2].strip() in MINUTE and m[3].strip() in MINUTE
    )


def known(schedule: tuple[Event, ...]) -> tuple[Event, ...]:
    return tuple(e for e in schedule if e.name in day().by_name)


def times_restored(schedule: tuple[Event, ...]) -> tuple[Event, ...]:
    return tuple(day().by_name.get(e.name, e) for e in schedule)


def any_case(schedule: tuple[Event, ...]) -> tuple[Event, ...]:
    names = {name.casefold(): name for name in day().by_name}
    return tuple(Event(e.start, e.end, names.get(e.name.casefold(), e.name)) for e in schedule)


def generous(problem, schedule) -> Verdict:
    verdict = VERIFY_SCHEDULE(problem, schedule)
    return replace(verdict, status=Status.OPTIMAL) if verdict.ratio > 0.8 else verdict


def last_schedule(text: str) -> str:
    return text[text.rfind("<schedule>") :] if "<schedule>" in text else text


#: (the weakening, a case it must be noticed by)
WEAKENINGS: dict[str, tuple[Weakening, str]] = {
    "touching counts as overlap": (rule_says(NoOverlap, touching_is_overlap), "gold itself"),
    "overlaps are not seen": (rule_says(NoOverlap, nothing), "overlap"),
    "only neighbours are compared": (rule_says(NoOverlap, only_neighbours_overlap), "overlap"),
    "order is not checked": (rule_says(Chronological, nothing), "swapped order"),
    "an empty schedule is fine": (rule_says(NotEmpty, nothing), "empty"),
    "duplicates are allowed": (overlook("duplicate"), "more events than there are"),
    "duplicates are dropped": (
        read_as(lambda schedule: tuple(dict.fromkeys(schedule))), "more events than there are"
    ),
    "altered times are accepted": (overlook("altered_time"), "start a minute late"),
    "altered times are restored": (read_as(times_restored), "end a minute early"),
    "unknown events are ignored": (read_as(known), "unknown event"),
    "unknown events are not named": (overlook("unknown_event"), "unknown event"),
    "names are read in any case": (read_as(any_case), "name in capitals"),
    "answers are sorted first": (
        read_as(lambda schedule: tuple(sorted(schedule))), "swapped order"
    ),
    "the reasoning is read too": (
        parse_as(lambda text: re.sub("</?think>", "", text)), "gold only in the reasoning"
    ),
    "unterminated reasoning is read": (
        parse_as(lambda text: text if "</think>" in text else text.replace("<think>", "")),
        "unterminated reasoning",
    ),
    "the last of many schedules counts": (parse_as(last_schedule), "two schedules"),
    "the first of many schedules counts": (
        parse_as(lambda text: text.partition("</schedule>")[0] + "</schedule>"),
        "good schedule before a bad one",
    ),
    "an unterminated schedule is closed": (
        parse_as(lambda text: text + "</schedule>"), "unterminated schedule"
    ),
    "tags are read in any case": (
        parse_as(lambda text: re.sub("</?[A-Za-z]+>", lambda m: m[0].lower(), text)),
        "schedule tag in capitals",
    ),
    "junk between events is passed over": (
        lambda patch: patch.setattr("rewards.parse._parse_events", find_events),
        "junk after an event",
    ),
    "hours of one digit and seconds are times": (times_by(first_two_numbers), "time with seconds"),
    "any script's digits are digits": (
        times_by(lambda text: 60 * int(text[:2]) + int(text[3:])), "time in Arabic digits"
    ),
    "times are stripped of any blank": (
        times_by(lambda text: MINUTE.get(text.strip(), -1)), "time with a hard blank"
    ),
    "priorities count once": (
        lambda patch: patch.setattr(data.problem, "PRIORITY_WEIGHT", 1), "gold itself"
    ),
    "nearly optimal is optimal": (
        lambda patch: patch.setattr("rewards.verify.verify_schedule", generous),
        "second best",
    ),
    "prose around the schedule is refused": (
        parse_as(lambda text: text if text.endswith("</schedule>") else ""), "prose after"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WEAKENINGS)
def test_a_weaker_verifier_is_noticed(name, monkeypatch):
    weaken, case = WEAKENINGS[name]
    weaken(monkeypatch)
    assert case in panel()


def test_the_panel_passes_again_once_nothing_is_patched():
    assert panel() == []
