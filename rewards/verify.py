"""(problem, completion) to Verdict: the one definition of a right answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import lru_cache

from data.event import Event, Schedule
from data.problem import Problem, problem_from_text
from data.solver import admits
from rewards.parse import ParseFailure, is_cut_off, parse, parse_leniently, plain_name


class Status(StrEnum):
    """Judgements of an answer, best first."""

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"
    UNPARSABLE = "unparsable"


#: Statuses of answers that break no rule.
VALID = (Status.OPTIMAL, Status.FEASIBLE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of one answer.

    Attributes:
        violations: every rule broken, each named, with the events it concerns.
        objective: weighted minutes; 0 where the answer breaks a rule.
        optimum: the greatest weighted minutes possible.
        ratio: objective / optimum, 0 to 1.
    """

    status: Status
    violations: tuple[str, ...]
    objective: int
    optimum: int

    @property
    def ratio(self) -> float:
        return self.objective / self.optimum

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "violations": list(self.violations), "ratio": self.ratio}


def violations(problem: Problem, schedule: Sequence[Event]) -> tuple[str, ...]:
    """Every way in which ``schedule`` is not a feasible answer to ``problem``; none if it is one.

    Events are judged as they were answered: an altered time is named, and overlaps count with it.
    """
    found: list[str] = []
    most = len(problem.events)
    if len(schedule) > most:
        # A hostile answer may list a hundred thousand events; its pairs are not all named.
        found.append(f"too_many_events: {len(schedule)} of {most}")
        schedule = schedule[: 2 * most]
    seen: set[str] = set()
    for event in schedule:
        known = problem.by_name.get(event.name)
        if known is None:
            found.append(f"unknown_event: {event.name}")
        elif known != event:
            found.append(f"altered_time: {event.name}")
        if event.name in seen and known is not None:
            found.append(f"duplicate: {event.name}")
        seen.add(event.name)
    for rule in problem.rules:
        found.extend(rule.violations(schedule))
    # Names are the model's: hostile ones may be long.
    return tuple(text[:200] for text in found)


def verify_schedule(problem: Problem, schedule: Schedule) -> Verdict:
    """Judge a parsed schedule.

    Raises:
        AssertionError: when a feasible schedule beats the problem's optimum, which was proven.
    """
    assert problem.optimum, "a problem is judged only after its optimum is proven"
    broken = violations(problem, schedule)
    if broken:
        return Verdict(Status.INFEASIBLE, broken, 0, problem.optimum)
    objective = problem.objective(schedule)
    assert objective <= problem.optimum, f"{schedule} beats the proven optimum {problem.optimum}"
    status = Status.OPTIMAL if objective == problem.optimum else Status.FEASIBLE
    return Verdict(status, (), objective, problem.optimum)


def read(
    problem: Problem, completion: str, finish_reason: str | None = None, lenient: bool = False
) -> Schedule | ParseFailure:
    """The schedule of an answer; none where it was cut off, whatever stands in it.

    ``lenient`` reads a malformed answer too, and names that are spelt with other blanks.
    """
    if is_cut_off(finish_reason):
        return ParseFailure.CUT_OFF
    schedule = parse(completion)
    known = problem.by_name
    if not lenient or (isinstance(schedule, tuple) and all(e.name in known for e in schedule)):
        return schedule
    loose = parse_leniently(completion, ended=finish_reason is not None)
    if isinstance(loose, ParseFailure):
        return schedule
    names = {plain_name(name): name for name in known}
    return tuple(Event(e.start, e.end, names.get(e.name, e.name)) for e in loose)


def unparsable(problem: Problem, failure: ParseFailure) -> Verdict:
    assert problem.optimum
    return Verdict(Status.UNPARSABLE, (failure.value,), 0, problem.optimum)


def verify(problem: Problem, completion: str) -> Verdict:
    """Judge a completion with the plain checks, about 20 microseconds."""
    schedule = parse(completion)
    if isinstance(schedule, ParseFailure):
        return unparsable(problem, schedule)
    return verify_schedule(problem, schedule)


@lru_cache(maxsize=8192)
def verify_text(problem_text: str, completion: str) -> Verdict:
    """``verify`` of a problem's JSON string; cached, since the reward's components share it."""
    return verify(problem_from_text(problem_text), completion)


class DisagreementError(Exception):
    """The plain checks and CP-SAT judge a schedule differently: a bug of ours, never hidden."""


@lru_cache(maxsize=200_000)
def confirm(problem: Problem, schedule: Schedule) -> Verdict:
    """Judge a schedule with the plain checks and confirm the judgement with CP-SAT.

    Cached, so each distinct (problem, schedule) is confirmed once.

    Raises:
        DisagreementError: naming the problem and the schedule.
    """
    verdict = verify_schedule(problem, schedule)
    feasible = verdict.status in VALID
    if admits(problem, schedule) != feasible:
        raise DisagreementError(
            f"the plain checks call {[e.to_json() for e in schedule]} {verdict.status} "
            f"{list(verdict.violations)}, CP-SAT does not; problem: {problem.to_json()}"
        )
    return verdict
