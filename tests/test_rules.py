"""Each rule's plain check and CP-SAT constraint are pinned to each other, and to ``problems.KEPT``.

A new rule is covered by a line in RULES (what it may be on a day with events of these names), a
definition in KEPT, and an example in EXAMPLES.
"""

import json
import random
import re
from itertools import chain, combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import KEPT, day, kept
from running import refusal_of

import data.rules
from data.clock import CLOCK
from data.event import Event
from data.problem import Problem
from data.rules import (
    BASE_RULES,
    DRAWN_KINDS,
    KINDS,
    AtLeastOne,
    AtMost,
    AtMostOne,
    Before,
    Break,
    Budget,
    Chronological,
    Gap,
    MustInclude,
    NoOverlap,
    NotEmpty,
    Rule,
    Travel,
    rule_from_json,
)
from data.solver import admits
from data.tiers import Tier
from rewards.verify import violations


def groups(names: list[str], fewest: int) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(names), min_size=fewest, max_size=3, unique=True).map(tuple)


@st.composite
def journeys(draw, names: list[str]) -> Travel:
    both = draw(st.lists(st.sampled_from(names), min_size=2, max_size=4, unique=True))
    at = draw(st.integers(1, len(both) - 1))
    return Travel(tuple(both[:at]), tuple(both[at:]), draw(st.integers(1, 30)))


@st.composite
def breaks(draw) -> Break:
    start, length = draw(st.integers(475, 550)), draw(st.integers(5, 60))
    return Break(draw(st.integers(1, length)), CLOCK[start], CLOCK[start + length])


RULES = {
    NotEmpty: lambda names: st.just(NotEmpty()),
    Chronological: lambda names: st.just(Chronological()),
    NoOverlap: lambda names: st.just(NoOverlap()),
    Gap: lambda names: st.builds(Gap, st.integers(1, 20)),
    Travel: journeys,
    Before: lambda names: st.permutations(names).map(lambda order: Before(*order[:2])),
    AtMostOne: lambda names: st.builds(AtMostOne, groups(names, 2)),
    AtLeastOne: lambda names: st.builds(AtLeastOne, groups(names, 1)),
    MustInclude: lambda names: st.builds(MustInclude, st.sampled_from(names)),
    AtMost: lambda names: st.builds(AtMost, st.integers(1, 4)),
    Budget: lambda names: st.builds(Budget, st.integers(5, 90)),
    Break: lambda names: breaks(),
}

ALONE = [(kind,) for kind in RULES]
PAIRS = list(combinations(RULES, 2))
_RNG = random.Random(0)
#: Three rules or more; all combinations would take minutes.
MIXTURES = [
    *(tuple(sorted(_RNG.sample(list(RULES), n % 8 + 3), key=list(RULES).index)) for n in range(32)),
    tuple(RULES),
]


def called(kinds: tuple[type[Rule], ...]) -> str:
    return "+".join(kind.kind for kind in kinds) or "none"


@st.composite
def days(draw, kinds: tuple[type[Rule], ...]) -> Problem:
    """2 to 6 events within an hour and a half, many touching or starting together."""
    spans = draw(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6)), min_size=2, max_size=6))
    events = tuple(
        Event(480 + 5 * start, 480 + 5 * (start + length), "ABCDEF"[i])
        for i, (start, length) in enumerate(spans)
    )
    names = [event.name for event in events]
    priorities = draw(st.lists(st.sampled_from(names), unique=True))
    rules = tuple(draw(RULES[kind](names)) for kind in kinds)
    return Problem(events, tuple(priorities), rules)


@st.composite
def answers(draw, problem: Problem) -> tuple[Event, ...]:
    """Any sequence: mostly events of the problem in some order, some listed twice, altered or
    unknown, and often a subset in order of start, or nothing random would ever be feasible."""
    listed = draw(st.lists(st.sampled_from(problem.events), max_size=len(problem.events) + 2))
    how = draw(st.sampled_from(("as drawn", "each once", "in order", "spoilt")))
    if how != "as drawn":
        listed = list(dict.fromkeys(listed))
    if how == "in order":
        listed.sort()
    if how == "spoilt" and listed:
        at = draw(st.integers(0, len(listed) - 1))
        start, end, name = listed[at].start, listed[at].end, listed[at].name
        moved = (start + 5, end, name), (start, end + 5, name), (end, start, name)
        unknown = (start, end, name.lower()), (start, end, "Z")
        listed[at] = Event(*draw(st.sampled_from((*moved, *unknown))))
    return tuple(listed)


def check_agreement(problem: Problem, schedule: tuple[Event, ...]) -> bool:
    feasible = not violations(problem, schedule)
    if len(set(schedule) & set(problem.events)) == len(schedule):
        # The rules of every problem have tests of their own below.
        further = [rule for rule in problem.rules if type(rule) in KEPT]
        broken = any(next(rule.violations(schedule), None) for rule in further)
        assert kept(problem, schedule) == (not broken), (problem.to_json(), schedule)
    assert admits(problem, schedule) == feasible, (
        problem.to_json(), schedule, violations(problem, schedule)
    )  # fmt: skip
    return feasible


def subsets(events: tuple[Event, ...]) -> list[tuple[Event, ...]]:
    """Every schedule of some of the events, in order of start."""
    sizes = range(len(events) + 1)
    return list(chain.from_iterable(combinations(sorted(events), n) for n in sizes))


def test_every_rule_is_covered():
    ours = {
        cls for cls in vars(data.rules).values() if isinstance(cls, type) and "kind" in vars(cls)
    }
    assert ours == set(RULES) == set(KINDS.values())
    further = set(RULES) - {type(rule) for rule in BASE_RULES}
    assert further == set(KEPT) == {type(example[0]) for example in EXAMPLES}
    assert further == {KINDS[kind] for kind in DRAWN_KINDS}


@pytest.mark.parametrize("kinds", [(), *ALONE, tuple(map(type, BASE_RULES))], ids=called)
def test_the_plain_check_and_cp_sat_agree_on_any_answer(kinds):
    seen = set()

    @settings(max_examples=100)
    @given(st.data())
    def agree(data):
        problem = data.draw(days(kinds))
        for _ in range(3):
            seen.add(check_agreement(problem, data.draw(answers(problem))))

    agree()
    assert seen == {True, False}, "both verdicts must have been met"


@pytest.mark.parametrize("kinds", [*PAIRS, *MIXTURES], ids=called)
def test_they_agree_on_every_set_of_events_under_rules_together(kinds):
    seen = set()

    @settings(max_examples=6)
    @given(days(kinds))
    def agree(problem):
        for schedule in subsets(problem.events):
            seen.add(check_agreement(problem, schedule))

    agree()
    assert seen == {True, False}, "both verdicts must have been met"


@pytest.mark.parametrize("kind", RULES, ids=lambda kind: kind.kind)
def test_a_rule_survives_its_json_form(kind):
    @settings(max_examples=20)
    @given(RULES[kind](["A", "B", "C"]))
    def round_trip(rule):
        rule.check()
        assert rule_from_json(json.loads(json.dumps(rule.to_json()))) == rule

    round_trip()


@pytest.mark.parametrize("kind", RULES, ids=lambda kind: kind.kind)
def test_what_is_said_to_be_hereditary_is_and_the_rest_grows_instead(kind):
    """The search for schedules turns back where a hereditary rule breaks; greedy policies count on
    every other rule to stay kept whatever is added."""

    @settings(max_examples=60)
    @given(days((kind,)))
    def holds(problem):
        [rule] = problem.rules
        held = {s: not list(rule.violations(s)) for s in subsets(problem.events)}
        for smaller, event in product(held, problem.events):
            larger = tuple(sorted((*smaller, event)))
            if event not in smaller:
                assert held[smaller] or not held[larger] if kind.hereditary else (
                    held[larger] or not held[smaller]
                ), (rule, smaller, larger)  # fmt: skip

    holds()


def on_the_day(names: str) -> tuple[Event, ...]:
    return tuple(day().by_name[name] for name in names.split())


#: (rule, its sentence, events of the day that just keep it, events that break it and no other
#: rule, what is said then)
EXAMPLES = [
    (
        Gap(30),
        "Leave at least 30 minutes between one chosen event and the next.",
        "Art Echo", "Art Drill Chess", "gap: Art / Drill",
    ),
    (
        Travel(("Art", "Drill"), ("Chess",), 60),
        "Going between the place of Art and Drill and the place of Chess takes 60 minutes; events "
        "at neither place may lie within them.",
        "Art Drill Echo", "Art Drill Echo Chess", "travel: Drill / Chess",
    ),
    (
        Before("Chess", "Art"),
        "If both are chosen, Chess comes before Art.",
        "Art Drill", "Art Chess", "before: Chess / Art",
    ),
    (
        AtMostOne(("Drill", "Chess", "Art")),
        "Choose at most one of Drill, Chess and Art.",
        "Band Chess", "Art Drill", "at_most_one: Art / Drill",
    ),
    (
        AtLeastOne(("Drill", "Chess")),
        "Choose at least one of Drill and Chess.",
        "Art Drill", "Art Echo", "at_least_one: Drill / Chess",
    ),
    (MustInclude("Echo"), "Choose Echo.", "Art Echo", "Art", "must_include: Echo"),
    (AtMost(2), "Choose at most 2 events.", "Art Drill", "Art Drill Echo", "at_most: 3 of 2"),
    (
        Budget(120),
        "The chosen events take at most 120 minutes together.",
        "Art Drill Chess", "Art Drill Echo Chess", "budget: 150 of 120 minutes",
    ),
    (
        Break(60, "10:00", "12:00"),
        "Keep 60 minutes in a row free between 10:00 and 12:00.",
        "Art Chess", "Art Echo Chess", "break: 60 minutes between 10:00 and 12:00",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "sentence", "keeping", "breaking", "says"),
    EXAMPLES,
    ids=[example[0].kind for example in EXAMPLES],
)
def test_a_further_rule_reads_and_judges_like_this(rule, sentence, keeping, breaking, says):
    assert rule.sentence() == sentence
    assert list(rule.violations(on_the_day(keeping))) == []
    assert list(rule.violations(on_the_day(breaking))) == [says]
    # In whatever order the events are answered.
    assert list(rule.violations(on_the_day(breaking)[::-1])) == [says]


APART = ((540, 600), (615, 620), (650, 660))
OVERLAPPING = ((540, 600), (570, 630))
TOGETHER = ((540, 570), (540, 600))
CLOSE = ((540, 600), (610, 620), (630, 640))
TOUCHING = ((540, 600), (600, 630))
BREAK = "break: {} minutes between {} and {}"
MORNING_AND_NOON = ((600, 660), (690, 720))


@pytest.mark.parametrize(
    ("rule", "spans", "says"),
    [
        (Chronological(), TOGETHER, []),
        (Chronological(), TOGETHER[::-1], []),
        # A gap counts from the end to the start, and to later events too.
        (Gap(15), APART, []),
        (Gap(16), APART, ["gap: A / B"]),
        (Gap(60), APART, ["gap: A / B", "gap: A / C", "gap: B / C"]),
        # Events that overlap are not too close as well.
        (Gap(15), OVERLAPPING, []),
        (Travel(("A",), ("B",), 15), OVERLAPPING, []),
        # Travel takes time both ways, and none within a place.
        (Travel(("A", "C"), ("B",), 11), CLOSE, ["travel: A / B", "travel: B / C"]),
        (Travel(("A", "C"), ("B",), 10), CLOSE, []),
        # The first of two may end when the second starts.
        (Before("A", "B"), TOUCHING, []),
        (Before("B", "A"), TOUCHING, ["before: B / A"]),
        (Before("A", "B"), ((540, 601), (600, 630)), ["before: A / B"]),
        # A break may fill the room between two events, or the edge of its window.
        (Break(30, "10:30", "12:00"), MORNING_AND_NOON, []),
        (Break(31, "10:30", "12:00"), MORNING_AND_NOON, [BREAK.format(31, "10:30", "12:00")]),
        (Break(30, "09:30", "12:00"), MORNING_AND_NOON, []),
        (Break(30, "09:31", "11:29"), MORNING_AND_NOON, [BREAK.format(30, "09:31", "11:29")]),
        (Break(30, "11:45", "12:30"), MORNING_AND_NOON, []),
        (Break(60, "11:00", "12:00"), (), []),
        # An event that ends before it starts buys no minutes.
        (Budget(59), ((540, 600), (700, 600)), ["budget: 60 of 59 minutes"]),
    ],
)  # fmt: skip
def test_a_rule_holds_to_the_minute(rule, spans, says):
    events = [Event(start, end, name) for (start, end), name in zip(spans, "ABC", strict=False)]
    assert list(rule.violations(events)) == says


def renamed(rule: Rule, called: dict[str, str]) -> Rule:
    """The same rule with its events called otherwise."""
    text = json.dumps(rule.to_json())
    for old, new in called.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    return rule_from_json(json.loads(text))


def test_the_fingerprint_ignores_the_names_in_rules_and_the_order_of_groups():
    rng = random.Random(1)
    every_kind = Tier(events=(8, 8), rules=(len(DRAWN_KINDS), len(DRAWN_KINDS)))
    for _ in range(50):
        problem = every_kind.sample(rng)
        called = {name: f"event {i}" for i, name in enumerate(problem.by_name)}
        events = tuple(Event(e.start, e.end, called[e.name]) for e in problem.events)
        rules = [renamed(rule, called) for rule in problem.rules]
        rules = [type(r)(r.group[::-1]) if hasattr(r, "group") else r for r in rules]
        rng.shuffle(rules)
        priorities = tuple(called[name] for name in problem.priorities)
        assert Problem(events, priorities, tuple(rules)).fingerprint == problem.fingerprint


def test_the_fingerprint_changes_with_what_a_rule_asks():
    a, b, c = Event(540, 600, "A"), Event(610, 620, "B"), Event(630, 640, "C")
    rules = [
        Gap(15), Gap(16), Budget(15), AtMost(15),
        Before("A", "B"), Before("B", "A"), Before("A", "C"),
        AtMostOne(("A", "B")), AtMostOne(("A", "C")),
        AtLeastOne(("A", "B")), AtLeastOne(("A",)), MustInclude("A"), MustInclude("B"),
        Travel(("A",), ("B",), 15), Travel(("A",), ("B",), 20),
        Travel(("A",), ("B", "C"), 15), Travel(("A", "C"), ("B",), 15),
        Break(15, "11:00", "12:00"), Break(15, "11:00", "12:01"), Break(16, "11:00", "12:00"),
    ]  # fmt: skip
    problems = [Problem((a, b, c), ("A",), (*BASE_RULES, rule)) for rule in rules]
    assert len({problem.fingerprint for problem in problems}) == len(rules)
    there_and_back = [Problem((a, b), (), (Travel((x,), (y,), 30),)) for x, y in ("AB", "BA")]
    assert len({problem.fingerprint for problem in there_and_back}) == 1


@pytest.mark.parametrize("kind", DRAWN_KINDS)
def test_a_rule_can_be_drawn_for_any_day_of_its_tier(kind):
    rng = random.Random(2)
    tier = Tier(events=(3, 8), rules=(1, 1), kinds=(kind,))
    tier.validate("tier 'mine'")
    found = [tier.sample(rng) for _ in range(50)]
    for problem in found:
        *base, rule = problem.rules
        assert (tuple(base), rule.kind) == (BASE_RULES, kind)
        rule.check()
        problem.check()
    assert len({problem.rules[-1] for problem in found}) > 1
    # For a lone event it makes sense too, or is not drawn.
    alone = KINDS[kind].sample((Event(540, 600, "A"),), rng)
    assert alone is None or not alone.check()
    assert alone is None or set(alone.names()) <= {"A"}


@pytest.mark.parametrize(
    ("kind", "values", "key"),
    [
        ("gap", {}, "minutes"),
        ("gap", {"minutes": 5, "x": 1}, "x"),
        *(("gap", {"minutes": bad}, "minutes") for bad in ("15", True, 0)),
        ("must_include", {"event": ["A"]}, "event"),
        ("before", {"first": "A", "then": "A"}, "then"),
        *(("at_most_one", {"group": bad}, "group") for bad in ("A", ["A", 1], ["A", "A"])),
        ("at_least_one", {"group": []}, "group"),
        ("travel", {"here": [], "there": ["B"], "minutes": 5}, "here"),
        ("travel", {"here": ["A"], "there": ["B", "A"], "minutes": 5}, "there"),
        ("break", {"minutes": 5, "start": "9:00", "end": "10:00"}, "start"),
        ("break", {"minutes": 5, "start": "09:00", "end": "24:00"}, "end"),
        ("break", {"minutes": 61, "start": "09:00", "end": "10:00"}, "end"),
    ],
)
def test_a_rule_that_makes_no_sense_is_named_in_one_sentence(kind, values, key):
    said = refusal_of(lambda: rule_from_json({"rule": kind, **values}))
    assert re.match(rf"rule '{kind}': .*\b{key}\b", said)
