"""Each rule's plain check and CP-SAT constraint are pinned to each other.

A new rule is covered by a line in RULES: what it may be on a day with events of these names.
"""

from itertools import chain, combinations, product

import pytest
from conftest import day, minutes
from hypothesis import given, settings
from hypothesis import strategies as st

from data.problem import Event, Problem
from data.rules import BASE_RULES, Chronological, NoOverlap, NotEmpty, Rule, rule_from_json
from data.solver import admits
from rewards.verify import violations

RULES = {
    NotEmpty: lambda names: st.just(NotEmpty()),
    Chronological: lambda names: st.just(Chronological()),
    NoOverlap: lambda names: st.just(NoOverlap()),
}

MIXTURES = list(chain.from_iterable(combinations(RULES, n) for n in range(len(RULES) + 1)))


def called(kinds: tuple[type[Rule], ...]) -> str:
    return "+".join(kind.kind for kind in kinds) or "none"


@st.composite
def days(draw, kinds: tuple[type[Rule], ...]) -> Problem:
    """1 to 6 events within an hour and a half, many touching or starting together."""
    spans = draw(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6)), min_size=1, max_size=6))
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
        listed[at] = draw(
            st.sampled_from(
                (
                    Event(start + 5, end, name),
                    Event(start, end + 5, name),
                    Event(end, start, name),
                    Event(start, end, name.lower()),
                    Event(start, end, "Z"),
                )
            )
        )
    return tuple(listed)


def check_agreement(problem: Problem, schedule: tuple[Event, ...]) -> bool:
    feasible = not violations(problem, schedule)
    assert admits(problem, schedule) == feasible, (
        problem.to_json(), schedule, violations(problem, schedule)
    )  # fmt: skip
    return feasible


def test_every_rule_is_covered():
    ours = {kind for kind in Rule.__subclasses__() if kind.__module__ == "data.rules"}
    assert ours == set(RULES)


@pytest.mark.parametrize("kinds", MIXTURES, ids=called)
def test_the_plain_check_and_cp_sat_agree_on_any_answer(kinds):
    seen = set()

    @settings(max_examples=150)
    @given(st.data())
    def agree(data):
        problem = data.draw(days(kinds))
        for _ in range(3):
            seen.add(check_agreement(problem, data.draw(answers(problem))))

    agree()
    assert seen == {True, False}, "both verdicts must have been met"


@pytest.mark.parametrize("kinds", MIXTURES, ids=called)
def test_they_agree_on_every_sequence_of_up_to_three_of_three_events(kinds):
    # A and B touch, B and C start together.
    events = (Event(540, 570, "A"), Event(570, 600, "B"), Event(570, 630, "C"))

    @settings(max_examples=5)
    @given(st.tuples(*(RULES[kind](["A", "B", "C"]) for kind in kinds)))
    def agree(rules):
        problem = Problem(events, ("B",), rules)
        for length in range(4):
            for schedule in product(events, repeat=length):
                check_agreement(problem, schedule)

    agree()


@pytest.mark.parametrize("kind", RULES, ids=lambda kind: kind.kind)
def test_a_rule_survives_its_json_form(kind):
    @settings(max_examples=20)
    @given(RULES[kind](["A", "B", "C"]))
    def round_trip(rule):
        assert rule_from_json(rule.to_json()) == rule

    round_trip()


def test_a_rule_says_what_it_asks_once_or_leaves_it_to_the_task():
    sentences = [rule.sentence() for rule in BASE_RULES]
    assert sentences[0] is None
    assert len(set(sentences)) == len(sentences)
    assert all(text is None or text.endswith(".") for text in sentences)


def test_not_empty_names_the_empty_schedule_only():
    assert list(NotEmpty().violations(())) == ["empty"]
    assert list(NotEmpty().violations(day().events[:1])) == []


def test_chronological_names_the_pair_that_is_out_of_order():
    art, band, drill, echo, _ = day().events
    found = list(Chronological().violations((band, art, echo, drill)))
    assert found == ["not_chronological: Band / Art", "not_chronological: Echo / Drill"]


def test_events_that_start_together_are_in_order_either_way():
    a, b = Event(540, 570, "A"), Event(540, 600, "B")
    assert not list(Chronological().violations((a, b)))
    assert not list(Chronological().violations((b, a)))


def test_no_overlap_names_every_pair_in_the_order_answered():
    art, band, drill, echo, chess = day().events
    found = list(NoOverlap().violations((echo, band, art, drill, chess)))
    assert found == ["overlap: Echo / Band", "overlap: Band / Art", "overlap: Band / Drill"]


def test_touching_events_do_not_overlap():
    art, _, drill, _, _ = day().events
    assert art.end == drill.start
    assert not list(NoOverlap().violations((art, drill)))
    assert not list(NoOverlap().violations((drill, art)))


@settings(max_examples=300)
@given(st.data())
def test_no_overlap_means_no_minute_shared(data):
    problem = data.draw(days((NoOverlap,)))
    pairs = [
        f"overlap: {a.name} / {b.name}"
        for a, b in combinations(problem.events, 2)
        if minutes(a) & minutes(b)
    ]
    assert list(NoOverlap().violations(problem.events)) == pairs
