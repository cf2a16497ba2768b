"""Rewards: the components of a verdict, the shapes made of them, and how TRL calls them."""

import math
import random
import re

import pytest
from conftest import BLOG, CORRUPTIONS, HARMLESS, day, feasible_schedules, tier_problems
from hypothesis import given
from hypothesis import strategies as st

from data.common.errors import UserError
from data.policies import random_feasible, random_maximal
from data.problem import Problem
from data.prompts import answer, messages, schedule_xml, trace
from data.published import read_published
from data.sections import RewardSection
from data.solver import interval_optimum
from rewards import blog
from rewards.reward import (
    COMPONENTS,
    SHAPES,
    check_reward,
    order,
    reward_functions,
    reward_weights,
    totals,
)
from rewards.verify import Status, Verdict, verify

ARGUMENT = day().text
GOLD = schedule_xml(interval_optimum(day()))
SOUND = [RewardSection(shape) for shape in SHAPES if shape != "blog"]
EVERY = [RewardSection(shape) for shape in SHAPES]

#: A verdict of each status on the day, whose optimum is 180, with its components' values in order.
BAND = "<schedule><event><name>Band</name><start>09:30</start><end>11:00</end></event></schedule>"
EXAMPLES = {
    Status.OPTIMAL: (GOLD, (1.0, 1.0, 1.0, 1.0)),
    Status.FEASIBLE: (BAND, (1.0, 1.0, 0.5, 0.0)),
    Status.INFEASIBLE: (BAND.replace("11:00", "11:05"), (1.0, 0.0, None, 0.0)),
    Status.UNPARSABLE: (BAND.replace("</schedule>", ""), (0.0, 0.0, None, 0.0)),
}


def paid(section: RewardSection, *texts: str, problem: Problem | None = None) -> list[float]:
    """The totals of answers to one problem, by default the day."""
    column = problem.text if problem else ARGUMENT
    return totals(section, [column] * len(texts), texts)


def shape_of(section: RewardSection) -> str:
    return section.shape


# --- components ----------------------------------------------------------------------------


@pytest.mark.parametrize("status", Status)
def test_each_status_has_its_components(status):
    text, values = EXAMPLES[status]
    verdict = verify(day(), text)
    assert verdict.status == status
    assert tuple(component(verdict) for component in COMPONENTS.values()) == values


@st.composite
def verdicts(draw) -> Verdict:
    """Any verdict on a problem whose optimum is 100."""
    status = draw(st.sampled_from(Status))
    objective = {Status.OPTIMAL: 100, Status.FEASIBLE: draw(st.integers(1, 99))}.get(status, 0)
    return Verdict(status, (), objective, 100)


@given(verdicts())
def test_every_component_that_applies_is_between_0_and_1(verdict):
    for component in COMPONENTS.values():
        value = component(verdict)
        assert value is None or (type(value) is float and 0 <= value <= 1)


# --- shapes: what is better is paid better --------------------------------------------------


def of_components(weights: dict[str, float], verdict: Verdict) -> float:
    return sum(weight * (COMPONENTS[name](verdict) or 0) for name, weight in weights.items())


@given(
    verdicts(),
    verdicts(),
    st.dictionaries(st.sampled_from(list(COMPONENTS)), st.floats(0, 10), min_size=1),
)
def test_no_weights_that_pass_the_check_pay_a_worse_verdict_better(one, other, weights):
    if any(weights.values()):
        check_reward(RewardSection(weights=weights), "a.yaml")
    worse, better = sorted((one, other), key=order)
    assert of_components(weights, worse) <= of_components(weights, better) + 1e-9


def test_verdicts_are_ordered_by_status_then_by_ratio():
    ordered = [
        Verdict(Status.UNPARSABLE, ("no_schedule",), 0, 100),
        Verdict(Status.INFEASIBLE, ("empty",), 0, 100),
        *(Verdict(Status.FEASIBLE, (), n, 100) for n in (1, 50, 99)),
        Verdict(Status.OPTIMAL, (), 100, 100),
    ]
    keys = [order(verdict) for verdict in ordered]
    assert keys == sorted(set(keys))


@pytest.mark.parametrize("section", SOUND, ids=shape_of)
def test_every_answer_to_a_problem_is_paid_by_its_verdict_and_better_ones_no_less(section):
    for problem in (day(), *tier_problems("trap", 5)):
        gold = interval_optimum(problem)
        spoilt = [made[0] for c in CORRUPTIONS.values() if (made := c(problem, gold))]
        texts = [*map(schedule_xml, feasible_schedules(problem)), *spoilt]
        keys = [order(verify(problem, text)) for text in texts]
        earned = paid(section, *texts, problem=problem)
        by_verdict: dict[tuple, float] = {}
        for key, reward in zip(keys, earned, strict=True):
            assert by_verdict.setdefault(key, reward) == reward
        values = [by_verdict[key] for key in sorted(by_verdict)]
        assert values == sorted(values)
        assert values[-1] == max(earned) > values[-2]  # only the optimum earns the most
        if section.shape != "binary":
            assert len(set(values)) == len(values)  # ever more for a better verdict


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (RewardSection("binary"), [1, 0, 0, 0]),
        (RewardSection("graded"), [1, 0.3, 0.05, 0]),
        (RewardSection("graded", {"ratio": 2, "validity": 0.25}), [2.25, 1.25, 0, 0]),
        (RewardSection("ranked"), [1, 2 / 3, 1 / 3, 0]),
    ],
)
def test_what_each_shape_pays_for_each_status(section, values):
    assert paid(section, *[text for text, _ in EXAMPLES.values()]) == pytest.approx(values)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_does_no_harm_is_paid_in_full(name):
    text = HARMLESS[name](day(), interval_optimum(day()))
    for section in (RewardSection("binary"), RewardSection("graded")):
        assert paid(section, text) == pytest.approx([1])


# --- ranked ---------------------------------------------------------------------------------

RANKED = RewardSection("ranked")


def test_ties_count_half_and_every_group_averages_to_a_half():
    bad = EXAMPLES[Status.INFEASIBLE][0]
    assert paid(RANKED, GOLD, BAND, BAND, bad) == [1, 0.5, 0.5, 0]
    assert paid(RANKED, GOLD, GOLD, GOLD) == [0.5, 0.5, 0.5]
    assert paid(RANKED, bad, "", BAND, GOLD) == pytest.approx([1 / 3, 0, 2 / 3, 1])


def test_an_answer_alone_is_neither_better_nor_worse():
    assert paid(RANKED, GOLD) == paid(RANKED, "") == [0.5]


def test_ranks_are_among_the_answers_to_the_same_problem():
    [other] = tier_problems("dense", 1)
    column = other.text
    gold = schedule_xml(interval_optimum(other))
    problems = [ARGUMENT, column, ARGUMENT, column]
    assert totals(RANKED, problems, [GOLD, gold, BAND, ""]) == [1, 1, 0, 0]


def test_the_length_of_an_answer_breaks_no_tie():
    long = answer(interval_optimum(day()), "so " * 100)
    assert paid(RANKED, GOLD, long, BAND) == [0.75, 0.75, 0]


# --- the published reward -------------------------------------------------------------------


def test_the_published_reward_drops_touching_events_and_pays_for_order():
    # Art, Drill, Echo and Chess touch, so each is dropped; the order earns its 20 points.
    assert paid(RewardSection("blog"), GOLD, answer(interval_optimum(day()), "so")) == [20, 30]


@pytest.mark.skipif(not BLOG.is_dir(), reason="the published data is not beside the project")
def test_the_published_reward_is_called_with_our_problems_and_pays_69_for_copying():
    section, earned = RewardSection("blog"), []
    for name in ("train", "test"):
        for _, problem, row in read_published(str(BLOG / f"{name}.jsonl"))[0]:
            copied = answer(problem.events, "so")
            [total] = paid(section, copied, problem=problem)
            assert total == pytest.approx(sum(blog.rewards(row, copied).values()))
            earned.append(total)
    assert sum(earned) / len(earned) == pytest.approx(69.4, abs=0.1)


# --- the recipe's section -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "key"),
    [
        (RewardSection("grated"), "reward.shape 'grated'"),
        (RewardSection("binary", {"optimal": 1.0}), "reward.weights"),
        (RewardSection("graded", {"optimum": 1.0}), "'reward.weights.optimum'; did you mean 'opt"),
        (RewardSection("graded", {"format": -0.1, "optimal": 1.0}), "reward.weights.format"),
        (RewardSection("graded", {"ratio": math.nan}), "reward.weights.ratio"),
        (RewardSection("graded", {"ratio": math.inf}), "reward.weights.ratio"),
        (RewardSection("graded", {"ratio": 0.0}), "reward.weights"),
        (RewardSection("graded", {}), "reward.weights"),
    ],
)
def test_a_reward_that_cannot_be_what_it_says_is_refused(section, key):
    with pytest.raises(UserError, match=rf"^a\.yaml: .*{re.escape(key)}"):
        check_reward(section, "a.yaml")


# --- as TRL calls it -----------------------------------------------------------------------


def trl(
    section: RewardSection, completions: list, prefix: str = "", **columns: object
) -> dict[str, list]:
    """What each function returns when TRL calls it, for the day unless a column says otherwise."""
    columns = {
        "prompts": [messages("…")] * len(completions),
        "completion_ids": [[1, 2]] * len(completions),
        "trainer_state": object(),
        "log_metric": lambda *_: None,
        "problem": [ARGUMENT] * len(completions),
        **columns,
    }
    functions = reward_functions(section, prefix)
    return {f.__name__: f(completions=completions, **columns) for f in functions}


GRADED = RewardSection("graded")


def conversation(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_what_is_paid_comes_first_and_the_truth_stands_beside_it_unpaid():
    truth = list(COMPONENTS)
    assert truth == ["format", "validity", "ratio", "optimal"]
    for section, names, weights in (
        (GRADED, truth, [0.05, 0.15, 0.2, 0.6]),
        (RewardSection("binary"), ["optimal", "format", "validity", "ratio"], [1, 0, 0, 0]),
        (RANKED, ["ranked", *truth], [1, 0, 0, 0, 0]),
        (RewardSection("blog"), [*blog.REWARDS, *truth], [1, 1, 1, 0, 0, 0, 0]),
        (
            RewardSection("graded", {"ratio": 2.0}),
            ["ratio", "format", "validity", "optimal"],
            [2, 0, 0, 0],
        ),
    ):
        check_reward(section, "a.yaml")
        assert [f.__name__ for f in reward_functions(section)] == names
        assert reward_weights(section) == weights


@pytest.mark.parametrize("section", [*EVERY, RewardSection("graded", {"ratio": 1.0})])
def test_something_applies_to_every_answer_or_trl_would_set_it_aside(section):
    values = trl(section, [text for text, _ in EXAMPLES.values()]).values()
    assert all(any(v is not None for v in row) for row in zip(*values, strict=True))


@pytest.mark.parametrize("form", [str, conversation])
def test_texts_and_conversations_are_rewarded_alike(form):
    completions = [form(text) for text, _ in EXAMPLES.values()]
    expected = zip(*(values for _, values in EXAMPLES.values()), strict=True)
    assert list(trl(GRADED, completions).values()) == [list(values) for values in expected]


def test_each_completion_is_judged_by_its_own_problem():
    [problem] = tier_problems("dense", 1)
    gold = schedule_xml(interval_optimum(problem))
    other = problem.text
    found = trl(GRADED, [GOLD, gold, GOLD, gold], problem=[ARGUMENT, other, other, ARGUMENT])
    assert found["optimal"] == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("section", EVERY, ids=shape_of)
def test_completions_without_their_problems_are_an_error_of_ours(section):
    with pytest.raises(ValueError, match="argument 2 is longer"):
        trl(section, [GOLD, GOLD], problem=[ARGUMENT])


def test_training_rewards_what_evaluation_counts():
    rng = random.Random(3)
    for problem in tier_problems("dense", 20):
        texts = [schedule_xml(policy(problem, rng)) for policy in (random_feasible, random_maximal)]
        optimal = trl(GRADED, texts, problem=[problem.text] * 2)["optimal"]
        assert optimal == [float(verify(problem, t).status == Status.OPTIMAL) for t in texts]


# --- where the chat template opens the reasoning -------------------------------------------

THOUGHT = trace(day(), interval_optimum(day()))
WHOLE = answer(interval_optimum(day()), THOUGHT)


def optimal(text: str, prefix: str) -> float:
    [value] = trl(GRADED, [conversation(text)], prefix)["optimal"]
    return value or 0


def test_a_draft_in_unterminated_reasoning_earns_nothing():
    draft = f"{THOUGHT}\n{GOLD}"
    assert optimal(draft, prefix="<think>\n") == 0
    assert trl(GRADED, [draft], "<think>\n")["format"] == [0]
    # Without the prefix the same text would have been paid.
    assert optimal(draft, prefix="") == 1


def test_an_answer_after_the_reasoning_earns_all():
    assert optimal(WHOLE.removeprefix("<think>\n"), prefix="<think>\n") == 1
    assert optimal(WHOLE, prefix="") == 1


def test_a_draft_does_not_stand_in_for_a_worse_answer():
    assert optimal(f"{GOLD}</think>{BAND}", prefix="<think>\n") == 0
    assert optimal(f"{BAND}</think>{GOLD}", prefix="<think>\n") == 1
