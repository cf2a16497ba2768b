"""Rewards: the components of a verdict, the shapes made of them, and how TRL calls them."""

import itertools
import json
import math
import random
import re
from functools import partial
from operator import attrgetter

import pytest
from answers import CORRUPTIONS
from hypothesis import given
from hypothesis import strategies as st
from problems import day, feasible_schedules, tier_problems
from running import refusal_of

from data.policies import random_maximal
from data.problem import Problem
from data.prompts import answer, messages, narration, schedule_xml
from data.rows import gold_answer
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
EVERY = [RewardSection(shape) for shape in SHAPES]
SOUND = [section for section in EVERY if section.shape != "blog"]
GRADED, RANKED = RewardSection("graded"), RewardSection("ranked")

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


def test_true_reasoning_pays_only_where_it_computes_the_optimum_that_is_answered():
    chosen = interval_optimum(day())
    worth = "".join(f"{event.name} = {day().value[event.name]}\n" for event in chosen)
    computed = gold_answer(day(), "computed")
    reasoned = partial(paid, RewardSection("reasoned"))
    assert reasoned(computed, GOLD, f"<think>{worth}</think>{GOLD}") == [1.0, 0.5, 0.5]
    assert reasoned(f"{computed.partition('</think>')[0]}</think>{BAND}") == [0.0]
    marks = {"<think>": "[THINK]", "</think>": "[/THINK]"}
    assert reasoned(re.sub("</?think>", lambda mark: marks[mark[0]], computed)) == [1.0]


@st.composite
def verdicts(draw) -> Verdict:
    """Any verdict on a problem whose optimum is 100."""
    status = draw(st.sampled_from(Status))
    objective = {Status.OPTIMAL: 100, Status.FEASIBLE: draw(st.integers(1, 99))}.get(status, 0)
    return Verdict(status, (), objective, 100)


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


@pytest.mark.parametrize("section", SOUND, ids=attrgetter("shape"))
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
        if section.shape in {"graded", "ranked"}:  # the others pay for the optimum alone
            assert len(set(values)) == len(values)  # ever more for a better verdict


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (RewardSection("binary"), [1, 0, 0, 0]),
        (RewardSection("graded"), [1, 0.3, 0.05, 0]),
        (RewardSection("graded", {"ratio": 2, "validity": 0.25}), [2.25, 1.25, 0, 0]),
        (RewardSection("ranked"), [1, 2 / 3, 1 / 3, 0]),
        # Art, Drill, Echo and Chess touch, so each is dropped; the order earns its 20 points.
        (RewardSection("blog"), [20, 0, 0, 0]),
    ],
)
def test_what_each_shape_pays_for_each_status(section, values):
    assert paid(section, *[text for text, _ in EXAMPLES.values()]) == pytest.approx(values)


# --- among the answers of a group -----------------------------------------------------------


def test_ties_count_half_and_every_group_averages_to_a_half():
    bad = EXAMPLES[Status.INFEASIBLE][0]
    assert paid(RANKED, GOLD, BAND, BAND, bad) == [1, 0.5, 0.5, 0]
    assert paid(RANKED, GOLD, GOLD, GOLD) == [0.5, 0.5, 0.5]
    assert paid(RANKED, bad, "", BAND, GOLD) == pytest.approx([1 / 3, 0, 2 / 3, 1])
    # One alone is neither better nor worse, and the length of an answer breaks no tie.
    assert paid(RANKED, GOLD) == paid(RANKED, "") == [0.5]
    assert paid(RANKED, GOLD, answer(interval_optimum(day()), "so " * 100), BAND) == [0.75, 0.75, 0]


def test_ranks_are_among_the_answers_to_the_same_problem():
    [other] = tier_problems("dense", 1)
    column = other.text
    gold = schedule_xml(interval_optimum(other))
    problems = [ARGUMENT, column, ARGUMENT, column]
    assert totals(RANKED, problems, [GOLD, gold, BAND, ""]) == [1, 1, 0, 0]


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("right", [0, 1, 2, 4])
def test_a_right_answer_is_paid_what_it_adds_to_k_less_one_drawn_from_its_group(right, k):
    solved = [True] * right + [False] * (4 - right)
    texts = [GOLD if one else BAND for one in solved]
    added = []
    for i, one in enumerate(solved):
        drawn = list(itertools.product(solved[:i] + solved[i + 1 :], repeat=k - 1))
        added.append(sum(any((one, *few)) - any(few) for few in drawn) / len(drawn))
    assert paid(RewardSection("passk", k=k), *texts) == pytest.approx(added)


def test_a_right_answer_is_paid_less_the_more_of_its_group_are_the_same_schedule():
    rare = RewardSection("rare")
    assert paid(rare, GOLD, BAND, BAND) == [1, 0, 0]
    reworded = answer(interval_optimum(day()), "so")
    assert paid(rare, GOLD, GOLD, reworded, BAND, "") == [0.75, 0.75, 0.75, 0, 0]
    assert paid(rare, GOLD, GOLD) == [0.5, 0.5]
    assert paid(rare, GOLD) == [1]
    for problem in tier_problems("dense", 30):
        best = [s for s in feasible_schedules(problem) if problem.is_optimal(s)]
        if len(best) > 1:
            texts = [schedule_xml(best[place]) for place in (0, 0, 0, 1)]
            assert paid(rare, *texts, problem=problem) == pytest.approx([2 / 3] * 3 + [1])
            return
    raise AssertionError("no problem with two optima")


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


def conversation(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def parts(text: str) -> list[dict[str, object]]:
    """A conversation with a first try, and content of parts of which one is thought."""
    thought = {"type": "thinking", "thinking": BAND}
    said = [thought, {"type": "text", "text": text}]
    turns = [("assistant", BAND), ("user", "Again."), ("assistant", said)]
    return [{"role": role, "content": content} for role, content in turns]


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


@pytest.mark.parametrize("form", [str, conversation, parts])
def test_texts_and_conversations_are_rewarded_alike(form):
    completions = [form(text) for text, _ in EXAMPLES.values()]
    expected = zip(*(values for _, values in EXAMPLES.values()), strict=True)
    expected = [list(values) for values in expected]
    assert list(trl(GRADED, completions).values()) == expected
    as_objects = [json.loads(ARGUMENT)] * len(completions)
    assert list(trl(GRADED, completions, problem=as_objects).values()) == expected


def test_an_answer_that_was_cut_off_earns_nothing_whatever_stands_in_it():
    [optimal] = [f for f in reward_functions(GRADED, stops={0, 9}) if f.__name__ == "optimal"]
    ids = [[5, 9], [5, 6], [], [0]]
    assert optimal([GOLD] * 4, [ARGUMENT] * 4, completion_ids=ids) == [1, 0, 0, 1]


@pytest.mark.parametrize("section", EVERY, ids=attrgetter("shape"))
def test_completions_without_their_problems_are_an_error_of_ours(section):
    with pytest.raises(ValueError, match="argument 2 is longer"):
        trl(section, [GOLD, GOLD], problem=[ARGUMENT])


def test_training_rewards_what_evaluation_counts_each_answer_by_its_own_problem():
    rng = random.Random(3)
    problems = tier_problems("dense", 20)
    texts = [schedule_xml(random_maximal(problem, rng)) for problem in problems]
    optimal = trl(GRADED, texts, problem=[problem.text for problem in problems])["optimal"]
    expected = [verdict.status == Status.OPTIMAL for verdict in map(verify, problems, texts)]
    assert optimal == list(map(float, expected))
    assert 0 < sum(expected) < 20


def test_where_the_template_opens_the_reasoning_a_draft_in_it_earns_nothing():
    def optimal(text: str, prefix: str) -> float:
        [value] = trl(GRADED, [conversation(text)], prefix)["optimal"]
        return value or 0

    thought = narration(day(), interval_optimum(day()))
    opened = "<think>\n"
    draft = f"{thought}\n{GOLD}"
    assert (optimal(draft, opened), optimal(draft, "")) == (0, 1)
    assert trl(GRADED, [draft], opened)["format"] == [0]
    # An answer after the reasoning earns all, whatever the draft.
    whole = answer(interval_optimum(day()), thought)
    assert optimal(whole.removeprefix(opened), opened) == optimal(whole, "") == 1
    assert optimal(f"{GOLD}</think>{BAND}", opened) == 0
    assert optimal(f"{BAND}</think>{GOLD}", opened) == 1


# --- what is refused, and a function of one's own -------------------------------------------


@pytest.mark.parametrize(
    ("section", "key"),
    [
        (RewardSection("grated"), "reward.shape 'grated'"),
        (RewardSection("binary", k=8), "reward.k"),
        (RewardSection("binary", {"optimal": 1.0}), "belong to the shape 'graded', not to"),
        (RewardSection("graded", {"optimum": 1.0}), "'reward.weights.optimum'; did you mean 'opt"),
        (RewardSection("graded", {"format": -0.1, "optimal": 1.0}), "reward.weights.format"),
        (RewardSection("graded", {"ratio": math.nan}), "reward.weights.ratio"),
        (RewardSection("graded", {"ratio": 0.0}), "reward.weights"),
        (RewardSection("graded", {}), "reward.weights needs a component with a weight above 0"),
    ],
)
def test_a_reward_that_cannot_be_what_it_says_is_refused(section, key):
    refusal_of(lambda: check_reward(section, "a.yaml"), "a.yaml: ", key)


def test_a_function_of_ones_own_is_paid_and_counts_by_its_content(tmp_path):
    file = tmp_path / "my.py"
    file.write_text("def per_event(problem, verdict): return verdict.ratio / len(problem.events)")
    section = RewardSection(function=f"{file}:per_event")
    check_reward(section, "r.yaml")
    events = len(day().events)
    assert paid(section, GOLD, BAND, "") == [1 / events, 0.5 / events, 0]
    assert [f.__name__ for f in reward_functions(section)] == ["per_event", *COMPONENTS]
    before = section.key
    file.write_text("def per_event(problem, verdict): return 1")
    assert section.key != before


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        ("", "none.py:mine", "no Python file"),
        ("", "my.py", "names no function of a file; write my.py:name"),
        ("", "none:mine", "write my.py:name"),
        ("def mime(p, v): return 1", "my.py:mine", "did you mean 'mime'"),
        ("mine = 3", "my.py:mine", "no such function"),
        ("def optimal(p, v): return 1", "my.py:optimal", "a name of ours"),
        ("def mine(p, v): return None", "my.py:mine", "must return a number, not None"),
        ("def mine(p, v): return float('nan')", "my.py:mine", "must return a number, not nan"),
        ("def mine(p, v) return 1", "my.py:mine", "cannot be run: SyntaxError"),
        ("import nowhere", "my.py:mine", "cannot be run: ModuleNotFoundError, No module named"),
        ("def mine(p): return 1", "my.py:mine", "fails on a problem and a verdict: TypeError"),
        ("def mine(p, v): return 1 / 0", "my.py:mine", "ZeroDivisionError, division by zero"),
    ],
)
def test_a_function_that_cannot_be_paid_is_refused_before_anything_runs(tmp_path, text, name, says):
    (tmp_path / "my.py").write_text(text)
    section = RewardSection(function=f"{tmp_path}/{name}")
    said = refusal_of(lambda: check_reward(section, "r.yaml"), says)
    assert said.startswith("r.yaml: reward.function ")
