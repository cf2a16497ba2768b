import pytest
from problems import day

from data.event import Event
from data.problem import Problem
from data.prompts import answer, narration
from eval.answers.reasoning import reasoning_report, reflections


def test_words_of_second_thoughts_are_found_outside_the_schedule_and_the_names_of_events():
    problem = Problem((Event(540, 600, "Wait tables"), Event(600, 660, "Art")), (), optimum=120)
    thought = "<think>Wait, let me re-check. REVALUE.</think>"
    assert reflections(day(), thought) == {"wait", "re-check"}
    doubted = "Double-check it, reconsidering.<schedule>"
    assert reflections(day(), doubted) == {"double-check", "reconsider"}
    assert reflections(day(), "<schedule><name>wait</name></schedule>") == set()
    assert reflections(day(), "The waiter awaits a precheck") == set()
    assert reflections(problem, "Wait tables = 60\nrethink") == {"rethink"}


def verdicts(problem_id, *answers):
    return [{"id": problem_id, "status": status, "completion": text} for status, text in answers]


def test_the_report_counts_what_the_answers_say():
    problem = day()
    best = tuple(problem.by_name[n] for n in ("Art", "Drill", "Echo", "Chess"))
    sound, silent = answer(best, narration(problem, best)), answer(best, None)
    wrong = answer(best[:1], "Wait, Art = 45\nArt = 45\nTotal 45")
    rows = [
        *verdicts("p", ("optimal", sound), ("optimal", silent), ("feasible", wrong)),
        *verdicts("p", ("feasible", wrong)),
        *verdicts("q", ("optimal", sound), ("feasible", wrong)),
    ]
    found = reasoning_report({"p": problem, "q": problem}, rows, seed=0, resamples=200)
    assert (found["problems"], found["answers"]) == (2, 6)
    assert found["reasoning"]["value"] == pytest.approx((3 / 4 + 1) / 2)
    assert found["sound"]["answers"] == 2
    assert found["sound"]["share"]["value"] == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert found["sound"]["optimal"]["value"] == 1
    assert found["unsound"]["optimal"]["value"] == 0
    assert found["untraced"]["answers"] == 1
    assert found["untraced"]["optimal"]["low"] < 0.1  # of one problem alone: next to nothing
    assert found["sound_minus_unsound"]["value"] == 1
    # One sound trace has 4 true values, a wrong one 1 false and 1 about "Wait, Art".
    value = found["claims"]["value"]
    assert value["made"] == 2 * 4 + 3 * 2
    assert value["true"]["value"] == pytest.approx((4 / 4 + 4 / 2) / (6 / 4 + 5 / 2))
    assert value["unknown"]["value"] == pytest.approx((2 / 4 + 1 / 2) / (8 / 4 + 6 / 2))
    assert found["claims"]["rule"] == {"made": 0, "true": None, "unknown": None}
    reflection = found["reflection"]
    assert reflection["keywords"] == {"wait": 3}
    assert reflection["with"]["answers"] == 3
    assert reflection["with"]["optimal"]["value"] == 0
    assert reflection["within_problem"]["value"] == -1
    assert reflection["within_problem"]["n"] == 2


def test_an_arm_that_never_reasons_is_reported_without_a_division_by_nothing():
    rows = verdicts("p", ("feasible", answer((day().events[0],), None)))
    found = reasoning_report({"p": day()}, rows, seed=0, resamples=50)
    assert found["reasoning"]["value"] == 0
    assert found["follows"] is None
    assert found["reflection"]["with"]["optimal"] is None
    assert found["reflection"]["within_problem"] is None
