"""A few of a run's answers, chosen for the page: balanced, the same each time, ready to be drawn.

Answers are read once, row by row, so a million of them need no more memory than the problems that
they answer.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from data.common.seeds import seed_of
from data.event import Event, Schedule
from data.problem import Problem
from rewards.parse import ParseFailure, parse, parse_leniently
from rewards.verify import Status

#: Most answers of one arm, tier and status, and of all together.
PER_CELL, MOST = 6, 360
#: Characters of a completion, and of a name in it, that are shown.
CUT, NAME_CUT = 2000, 80
#: Violations, and events not as they were asked, that are shown of one answer.
MOST_NAMED = 12


@dataclass
class Choice:
    """The answers to be shown.

    Attributes:
        rows: those chosen, in the order to be shown.
        optimal, answers: by (arm, problem), how many are optimal, and how many there are.
        total: how many answers there were to choose from.
        each: how many of one arm, tier and status were taken at most.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    optimal: Counter[tuple[str, str]] = field(default_factory=Counter)
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    total: int = 0
    each: int = 0


def choose(
    answers: Mapping[str, Iterable[Mapping[str, Any]]], tier_of: Mapping[str, str], seed: int
) -> Choice:
    """Choose equally many answers of every arm, tier and status, as far as there are.

    Problems come in one random order for all arms, so that arms are seen on the same problems; of
    one problem a second answer of the same kind is taken only where other problems run out.

    Args:
        answers: per arm, rows ``{id, sample, status, …}`` on problems that ``tier_of`` has.
        tier_of: the tier of each problem.
        seed: the order of the problems is hashed from it.
    """
    choice = Choice()
    order = sorted(tier_of, key=lambda name: seed_of(seed, "page", name))
    rank = {name: place for place, name in enumerate(order)}
    cells: dict[tuple[str, str, str], list[tuple[int, int, int, Mapping[str, Any]]]] = {}
    nth: Counter[tuple[str, str, str]] = Counter()
    for arm, rows in answers.items():
        for row in rows:
            name, status = row["id"], str(row["status"])
            choice.total += 1
            choice.answers[arm, name] += 1
            choice.optimal[arm, name] += status == Status.OPTIMAL
            cell = cells.setdefault((arm, tier_of[name], status), [])
            key = (nth[arm, name, status], rank[name], choice.total)
            nth[arm, name, status] += 1
            if len(cell) < PER_CELL or key < cell[-1][:3]:
                insort(cell, (*key, {**row, "arm": arm}))
                del cell[PER_CELL:]
    choice.each = max(1, min(PER_CELL, MOST // max(1, len(cells))))
    chosen = [row for cell in cells.values() for *_, row in cell[: choice.each]]
    tiers, arms = list(dict.fromkeys(tier_of.values())), list(answers)
    choice.rows = sorted(
        chosen,
        key=lambda row: (
            tiers.index(tier_of[row["id"]]),
            rank[row["id"]],
            arms.index(row["arm"]),
            row["sample"],
        ),
    )
    return choice


def lanes(events: Sequence[Event]) -> list[tuple[int, int]]:
    """(lane, lanes beside each other) of each event, so that no two in a lane overlap. Events that
    share no minute with each other, by way of others too, may have different numbers of lanes."""
    place = [(0, 1)] * len(events)
    group: list[tuple[int, int]] = []
    ends: list[int] = []

    def close() -> None:
        for i, lane in group:
            place[i] = (lane, len(ends))
        group.clear()
        ends.clear()

    for i in sorted(range(len(events)), key=lambda i: events[i]):
        event = events[i]
        if all(end <= event.start for end in ends):
            close()
        lane = next((n for n, end in enumerate(ends) if end <= event.start), len(ends))
        ends[lane : lane + 1] = [max(event.start, event.end)]
        group.append((i, lane))
    close()
    return place


def _schedule(text: str, status: str) -> Schedule:
    """The schedule that was judged, empty where none could be read."""
    parsed = parse(text)
    if isinstance(parsed, ParseFailure) and status != Status.UNPARSABLE:
        parsed = parse_leniently(text)  # as its arm is read
    return () if isinstance(parsed, ParseFailure) else parsed


def drawn_problem(row: Mapping[str, Any]) -> dict[str, Any]:
    """A problem as the page's script draws it; times in minutes.

    ``events`` are ``[name, start, end, weighted minutes, priority, in the gold answer, lane, lanes
    beside each other]``.
    """
    problem: Problem = row["problem"]
    best = frozenset(_schedule(row["gold"], Status.OPTIMAL))
    return {
        "id": row["id"],
        "tier": row["tier"],
        "optimum": problem.optimum,
        "prompt": row["prompt"],
        "rules": [sentence for rule in problem.rules if (sentence := rule.sentence())],
        "from": min(e.start for e in problem.events) // 60 * 60,
        "to": -(-max(e.end for e in problem.events) // 60) * 60,
        "events": [
            [e.name, e.start, e.end, problem.value[e.name], e.name in problem.priorities, e in best,
             *place]
            for e, place in zip(problem.events, lanes(problem.events), strict=True)
        ],
    }  # fmt: skip


def drawn_answer(
    problem: Problem, verdict: Mapping[str, Any], sample: Mapping[str, Any]
) -> dict[str, Any]:
    """An answer as the page's script draws it beside its problem.

    ``chosen``, ``overlapping`` and ``broken`` are places in the problem's events; ``strays`` are
    answered events that the problem does not have so: ``[name, start, end, what, overlapping,
    broken, lane, lanes beside each other]``.
    """
    text = sample["completion"]
    answered = _schedule(text, verdict["status"])
    # A hostile answer may list a hundred thousand events.
    schedule = answered[: 2 * len(problem.events)]
    violations = list(verdict["violations"])
    named = {name for text in violations for name in text.partition(": ")[2].split(" / ")}
    chosen = set(schedule) & set(problem.events)
    strays = list(_strays(problem, schedule))
    strayed = {event.name for event, _ in strays}
    overlapping = {
        event
        for pair in combinations(schedule, 2)
        if pair[0].name != pair[1].name and pair[0].overlaps(pair[1])
        for event in pair
    }

    def places(events: Container[Event]) -> list[int]:
        return [i for i, event in enumerate(problem.events) if event in events]

    return {
        "arm": verdict["arm"],
        "sample": verdict["sample"],
        "status": verdict["status"],
        "objective": verdict["objective"],
        "violations": violations[:MOST_NAMED],
        "more_violations": max(0, len(violations) - MOST_NAMED),
        "finish": sample.get("finish_reason"),
        "tokens": sample.get("tokens"),
        "text": text[:CUT],
        "cut": max(0, len(text) - CUT),
        "chosen": places(chosen),
        "overlapping": places(overlapping),
        # Events that were not chosen may be named by a rule too: one that demands them.
        "broken": [
            i
            for i, event in enumerate(problem.events)
            if event.name in named and (event in chosen or event.name not in strayed)
        ],
        "strays": [
            [event.name[:NAME_CUT], event.start, event.end, what, event in overlapping,
             event.name in named, *lane]
            for (event, what), lane in zip(
                strays[:MOST_NAMED], lanes([e for e, _ in strays[:MOST_NAMED]]), strict=True
            )
        ],
        "more_strays": max(0, len(strays) - MOST_NAMED) + len(answered) - len(schedule),
    }  # fmt: skip


def _strays(problem: Problem, schedule: Sequence[Event]) -> Iterator[tuple[Event, str]]:
    """Answered events that are not the problem's, or listed before, and what is wrong with them."""
    seen: set[str] = set()
    for event in schedule:
        known = problem.by_name.get(event.name)
        if known is None:
            yield event, "no such event"
        elif known != event:
            yield event, "other times"
        elif event.name in seen:
            yield event, "listed again"
        seen.add(event.name)
