"""A few of a run's answers, chosen for the page: balanced, the same each time, ready to be drawn.

Answers are read once, row by row, so a million of them need no more memory than the problems that
they answer.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, islice
from typing import Any

from data.common.seeds import seed_of
from data.event import Event, Schedule
from data.problem import Problem
from data.run import BASE
from rewards.parse import ParseFailure
from rewards.verify import VALID, Status, read

#: Most answers of one arm, tier and status, and of all together.
PER_CELL, MOST = 6, 360
#: Problems that one of the base and an arm solves and the other never does, of each kind.
PER_GAP = 3
#: Characters of a completion, and of a name in it, that are shown.
CUT, NAME_CUT = 2000, 80
#: Violations, and events not as they were asked, that are shown of one answer.
MOST_NAMED = 12

#: A row of samples joined with its verdict: ``{id, arm, sample, completion, status, …}``.
Answer = Mapping[str, Any]


@dataclass(frozen=True)
class Showcase:
    """The answers to be shown.

    Attributes:
        answers: those chosen, in the order to be shown.
        solved: by (arm, problem), how many answers are optimal, and how many there are.
        total: how many answers there were to choose from.
        each: how many of one arm, tier and status were taken at most; on top come answers of both
            sides to problems that one of the base and an arm solves and the other never does.
    """

    answers: Sequence[Answer]
    solved: Mapping[tuple[str, str], tuple[int, int]]
    total: int
    each: int


def choose_answers(
    answers: Mapping[str, Iterable[Answer]], tier_of: Mapping[str, str], seed: int
) -> Showcase:
    """Choose equally many answers of every arm, tier and status, as far as there are.

    Problems come in one random order for all arms, so that arms are seen on the same problems; of
    one problem a second answer of the same kind is taken only where other problems run out.

    Args:
        answers: of each arm, on problems that ``tier_of`` has.
        tier_of: the tier of each problem.
        seed: the order of the problems is hashed from it.
    """
    order = sorted(tier_of, key=lambda name: seed_of(seed, "page", name))
    rank = {name: place for place, name in enumerate(order)}
    cells: dict[tuple[str, str, str], list[tuple[int, int, Answer]]] = {}
    seen: Counter[tuple[str, str, str]] = Counter()
    best: dict[tuple[str, str], Answer] = {}  # an optimal answer where there is one, else any
    for arm, rows in answers.items():
        for row in rows:
            name, status = row["id"], str(row["status"])
            cell = cells.setdefault((arm, tier_of[name], status), [])
            key = (seen[arm, name, status], rank[name])
            seen[arm, name, status] += 1
            if (arm, name) not in best or best[arm, name]["status"] != Status.OPTIMAL == status:
                best[arm, name] = {**row, "arm": arm}
            if len(cell) < PER_CELL or key < cell[-1][:2]:
                insort(cell, (*key, {**row, "arm": arm}))
                del cell[PER_CELL:]
    each = max(1, min(PER_CELL, MOST // max(1, len(cells))))
    tiers, arms = list(dict.fromkeys(tier_of.values())), list(answers)
    shown = [row for cell in cells.values() for *_, row in cell[:each]]
    shown += [best[arm, name] for arm, name in _gaps(order, arms, seen) if (arm, name) in best]
    chosen = {
        (
            tiers.index(tier_of[row["id"]]),
            rank[row["id"]],
            arms.index(row["arm"]),
            row["sample"],
        ): row
        for row in shown
    }
    counts: Counter[tuple[str, str]] = Counter()
    for (arm, name, _), count in seen.items():
        counts[arm, name] += count
    return Showcase(
        [row for _, row in sorted(chosen.items())],
        {pair: (seen[*pair, Status.OPTIMAL], count) for pair, count in counts.items()},
        seen.total(),
        each,
    )


def _gaps(
    order: Sequence[str], arms: Sequence[str], seen: Mapping[tuple[str, str, str], int]
) -> Iterator[tuple[str, str]]:
    """(arm, problem) of both sides, where one solves what the other never does."""
    pairs = [(BASE, arm) for arm in arms if arm != BASE] if BASE in arms else []
    for one, other in chain(pairs, [pair[::-1] for pair in pairs]):
        apart = (
            name
            for name in order
            if seen[one, name, Status.OPTIMAL] and not seen[other, name, Status.OPTIMAL]
        )
        for name in islice(apart, PER_GAP):
            yield from ((one, name), (other, name))


def _schedule(problem: Problem, answer: Answer) -> Schedule:
    """The schedule that was judged, empty where none could be read."""
    text, reason, status = answer["completion"], answer.get("finish_reason"), answer["status"]
    parsed = read(problem, text, reason)
    if status in VALID or (status != Status.UNPARSABLE and isinstance(parsed, ParseFailure)):
        parsed = read(problem, text, reason, lenient=True)  # its arm may be read so
    return () if isinstance(parsed, ParseFailure) else parsed


def drawn_problem(row: Mapping[str, Any]) -> dict[str, Any]:
    """A problem as the page's script draws it; times in minutes.

    ``events`` are ``[name, start, end, weighted minutes, priority, in the gold answer]``.
    """
    problem: Problem = row["problem"]
    best = frozenset(_schedule(problem, {"completion": row["gold"], "status": Status.OPTIMAL}))
    return {
        "id": row["id"],
        "tier": row["tier"],
        "optimum": problem.optimum,
        "prompt": row["prompt"],
        "from": min(e.start for e in problem.events) // 60 * 60,
        "to": -(-max(e.end for e in problem.events) // 60) * 60,
        "events": [
            [e.name, e.start, e.end, problem.value[e.name], e.name in problem.priorities, e in best]
            for e in problem.events
        ],
    }


def drawn_answer(problem: Problem, answer: Answer) -> dict[str, Any]:
    """An answer as the page's script draws it beside its problem.

    ``chosen``, ``overlapping`` and ``broken`` are places in the problem's events; ``strays`` are
    answered events that the problem does not have so: ``[name, start, end, what, overlapping,
    broken]``.
    """
    answered = _schedule(problem, answer)
    # A hostile answer may list a hundred thousand events.
    schedule = answered[: 2 * len(problem.events)]
    violations = answer["violations"]
    named = {name for text in violations for name in text.partition(": ")[2].split(" / ")}
    chosen = set(schedule) & set(problem.events)
    strays = list(_strays(problem, schedule))
    strayed = {event.name for event, _ in strays}
    overlapping = {
        event
        for a, b in combinations(schedule, 2)
        if a.name != b.name and a.overlaps(b)
        for event in (a, b)
    }
    # A rule may name an event that was not chosen too: one that demands it.
    broken = {
        e for e in problem.events if e.name in named and (e in chosen or e.name not in strayed)
    }

    def places(events: Container[Event]) -> list[int]:
        return [i for i, event in enumerate(problem.events) if event in events]

    return {
        **{key: answer[key] for key in ("arm", "sample", "status", "objective")},
        "violations": violations[:MOST_NAMED],
        "more_violations": max(0, len(violations) - MOST_NAMED),
        "finish": answer.get("finish_reason"),
        "tokens": answer.get("tokens"),
        "text": answer["completion"][:CUT],
        "cut": max(0, len(answer["completion"]) - CUT),
        "chosen": places(chosen),
        "overlapping": places(overlapping),
        "broken": places(broken),
        "strays": [
            [e.name[:NAME_CUT], e.start, e.end, what, e in overlapping, e.name in named]
            for e, what in strays[:MOST_NAMED]
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
