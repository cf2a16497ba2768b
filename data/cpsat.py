"""DayModel: the CP-SAT model of one day, to which each rule adds its constraint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ortools.sat.python import cp_model

from data.event import Event


class DayModel:
    """CP-SAT model of the events of a day.

    Attributes:
        model: takes the constraints.
        chosen: ``chosen[i]`` is 1 where ``events[i]`` is in the schedule.
        position: ``position[i]`` is the place of ``events[i]`` in an answer, for rules about the
            order of an answer; None unless ``ordered``, since proving an optimum needs none.
        weighted_minutes: of the chosen events.
    """

    def __init__(
        self, events: Sequence[Event], value: Mapping[str, int], ordered: bool = False
    ) -> None:
        self.events = events
        self.model = cp_model.CpModel()
        self.chosen = [self.model.new_bool_var("") for _ in events]
        self.position = [self.model.new_int_var(0, len(events), "") for _ in events if ordered]
        self.weighted_minutes = cp_model.LinearExpr.weighted_sum(
            self.chosen, [value[e.name] for e in events]
        )

    @property
    def choices(self) -> list[tuple[Event, cp_model.IntVar]]:
        """Each event with its variable."""
        return list(zip(self.events, self.chosen, strict=True))

    def chosen_of(self, names: Sequence[str]) -> list[cp_model.IntVar]:
        """The variables of these events."""
        return [chosen for event, chosen in self.choices if event.name in names]

    def solve(
        self, effort: float | None = None
    ) -> tuple[cp_model.CpSolverStatus, cp_model.CpSolver]:
        """Solve with one worker and a fixed seed: the same model, the same answer, anywhere.

        Args:
            effort: limit of CP-SAT's deterministic time, which counts work instead of seconds.
        """
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = 0
        # Otherwise CP-SAT lets Ctrl-C end the process from here on, unheard by Python.
        solver.parameters.catch_sigint_signal = False
        # Presolve or a handful of conflicts settle these models; probing, symmetry detection and
        # a linear relaxation cost more than they save.
        solver.parameters.cp_model_probing_level = 0
        solver.parameters.symmetry_level = 0
        solver.parameters.linearization_level = 0
        if effort is not None:
            solver.parameters.max_deterministic_time = effort
        return solver.solve(self.model), solver
