"""Rewards: the components of a verdict, their sum, and how TRL calls them."""

import json
import random
from pathlib import Path

import pytest
from conftest import CORRUPTIONS, HARMLESS, day, feasible_schedules, tier_problems
from hypothesis import given
from hypothesis import strategies as st

from data.policies import random_feasible, random_maximal
from data.problem import Problem
from data.prompts import answer, messages, schedule_xml, trace
from data.recipe import load_recipe
from data.solver import interval_optimum
from rewards.reward import COMPONENTS, reward, text_of, trl_rewards
from rewards.verify import Status, Verdict, verify

TINY = Path(__file__).parents[1] / "pipeline" / "recipes" / "tiny.yaml"
ARGUMENT = json.dumps(day().to_json())
GOLD = schedule_xml(interval_optimum(day()))

#: A verdict of each status on the day, whose optimum is 180, with its components' values in order.
BAND = "<schedule><event><name>Band</name><start>09:30</start><end>11:00</end></event></schedule>"
EXAMPLES = {
    Status.OPTIMAL: (GOLD, (1.0, 1.0, 1.0, 1.0)),
    Status.FEASIBLE: (BAND, (1.0, 1.0, 0.5, 0.0)),
    Status.INFEASIBLE: (BAND.replace("11:00", "11:05"), (1.0, 0.0, 0.0, 0.0)),
    Status.UNPARSABLE: (BAND.replace("</schedule>", ""), (0.0, 0.0, 0.0, 0.0)),
}


# --- components ----------------------------------------------------------------------------


def test_the_components_are_these():
    assert list(COMPONENTS) == ["format", "validity", "ratio", "optimal"]


@pytest.mark.parametrize("status", Status)
def test_each_status_has_its_components(status):
    text, values = EXAMPLES[status]
    verdict = verify(day(), text)
    assert verdict.status == status
    assert tuple(component(verdict) for component in COMPONENTS.values()) == values


@given(st.sampled_from(Status), st.integers(1, 1000), st.integers(1, 1000))
def test_every_component_is_between_0_and_1(status, optimum, objective):
    sound = status in (Status.OPTIMAL, Status.FEASIBLE)
    verdict = Verdict(status, (), min(objective, optimum) if sound else 0, optimum)
    values = [component(verdict) for component in COMPONENTS.values()]
    assert all(type(value) is float and 0 <= value <= 1 for value in values)


def test_the_reward_is_the_weighted_sum_of_the_components_named():
    verdict = verify(day(), BAND)
    assert reward(verdict, {"ratio": 2.0, "validity": 0.25, "optimal": 9.0}) == 1.25
    assert reward(verdict, {"format": -0.5}) == -0.5
    assert reward(verdict, {}) == 0


# --- shape: what is better is paid better --------------------------------------------------


def test_under_the_default_weights_a_better_answer_is_paid_better():
    weights = load_recipe(TINY).rewards
    for problem in (day(), *tier_problems("trap", 5)):
        problem = problem if problem.optimum else problem.proven(180)
        schedules = list(feasible_schedules(problem))
        by_minutes: dict[int, float] = {}
        for schedule in schedules:
            paid = reward(verify(problem, schedule_xml(schedule)), weights)
            assert by_minutes.setdefault(problem.objective(schedule), paid) == paid
        values = [by_minutes[minutes] for minutes in sorted(by_minutes)]
        assert values == sorted(set(values))  # ever more for more minutes
        assert values[-1] == pytest.approx(sum(weights.values()))
        for corrupt in CORRUPTIONS.values():
            corrupted = corrupt(problem, interval_optimum(problem))
            if corrupted is not None:
                assert reward(verify(problem, corrupted[0]), weights) < values[0]


def test_under_the_default_weights_format_alone_never_beats_a_right_answer():
    weights = load_recipe(TINY).rewards
    paid = {s: reward(verify(day(), text), weights) for s, (text, _) in EXAMPLES.items()}
    assert paid[Status.OPTIMAL] > paid[Status.FEASIBLE] > paid[Status.INFEASIBLE]
    assert paid[Status.INFEASIBLE] >= paid[Status.UNPARSABLE]
    everything = schedule_xml(day().events)
    assert reward(verify(day(), everything), weights) == paid[Status.INFEASIBLE]


@pytest.mark.parametrize("name", HARMLESS)
def test_what_does_no_harm_is_paid_in_full(name):
    text = HARMLESS[name](day(), interval_optimum(day()))
    assert reward(verify(day(), text), dict.fromkeys(COMPONENTS, 0.25)) == 1


# --- as TRL calls it -----------------------------------------------------------------------


def trl(names: list[str], completions: list, prefix: str = "", **columns: object) -> list[list]:
    """What each function returns when TRL calls it, for the day unless a column says otherwise."""
    columns = {
        "prompts": [messages("…")] * len(completions),
        "completion_ids": [[1, 2]] * len(completions),
        "trainer_state": object(),
        "log_metric": lambda *_: None,
        "problem": [ARGUMENT] * len(completions),
        **columns,
    }
    return [function(completions=completions, **columns) for function in trl_rewards(names, prefix)]


def conversation(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_each_function_has_its_components_name_under_which_trl_logs_it():
    names = ["optimal", "format", "ratio"]
    assert [function.__name__ for function in trl_rewards(names)] == names


@pytest.mark.parametrize("form", [str, conversation])
def test_texts_and_conversations_are_rewarded_alike(form):
    completions = [form(text) for text, _ in EXAMPLES.values()]
    expected = zip(*(values for _, values in EXAMPLES.values()), strict=True)
    assert trl(list(COMPONENTS), completions) == [list(values) for values in expected]


def test_the_text_of_a_completion_is_its_message():
    assert text_of("so") == text_of(conversation("so")) == "so"


def test_each_completion_is_judged_by_its_own_problem():
    [problem] = tier_problems("dense", 1)
    gold = schedule_xml(interval_optimum(problem))
    [optimal] = trl(
        ["optimal"],
        [GOLD, gold, GOLD, gold],
        problem=[ARGUMENT, json.dumps(problem.to_json()), json.dumps(problem.to_json()), ARGUMENT],
    )
    assert optimal == [1.0, 1.0, 0.0, 0.0]


def test_completions_without_their_problems_are_an_error_of_ours():
    with pytest.raises(ValueError, match="argument 2 is longer"):
        trl(["optimal"], [GOLD, GOLD], problem=[ARGUMENT])


def test_training_rewards_what_evaluation_counts():
    rng = random.Random(3)
    for problem in tier_problems("dense", 20):
        texts = [schedule_xml(policy(problem, rng)) for policy in (random_feasible, random_maximal)]
        [optimal] = trl(["optimal"], texts, problem=[json.dumps(problem.to_json())] * 2)
        assert optimal == [float(verify(problem, t).status == Status.OPTIMAL) for t in texts]


# --- where the chat template opens the reasoning -------------------------------------------

THOUGHT = trace(day(), interval_optimum(day()))
WHOLE = answer(interval_optimum(day()), THOUGHT)


def optimal(text: str, prefix: str) -> float:
    [[value]] = trl(["optimal"], [conversation(text)], prefix)
    return value


def test_a_draft_in_unterminated_reasoning_earns_nothing():
    draft = f"{THOUGHT}\n{GOLD}"
    assert optimal(draft, prefix="<think>\n") == 0
    [[form]] = trl(["format"], [draft], "<think>\n")
    assert form == 0
    # Without the prefix the same text would have been paid.
    assert optimal(draft, prefix="") == 1


def test_an_answer_after_the_reasoning_earns_all():
    assert optimal(WHOLE.removeprefix("<think>\n"), prefix="<think>\n") == 1
    assert optimal(WHOLE, prefix="") == 1


def test_a_draft_does_not_stand_in_for_a_worse_answer():
    assert optimal(f"{GOLD}</think>{BAND}", prefix="<think>\n") == 0
    assert optimal(f"{BAND}</think>{GOLD}", prefix="<think>\n") == 1


def test_a_problem_as_text_is_the_problem():
    assert Problem.from_json(json.loads(ARGUMENT)) == day()
