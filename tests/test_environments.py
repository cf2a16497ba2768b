"""What other trainers get scores as the project's own judge does; the wheel is light."""

import asyncio
import importlib
import json
import random
import sys
from email.parser import Parser
from functools import cache
from importlib.metadata import packages_distributions, requires
from types import SimpleNamespace
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from running import python, refusal_of

from data.problem import Problem
from data.rows import gold_answer
from data.sections import RewardSection
from data.solver import optimal_schedule
from rewards import environments as slotwise
from rewards.attacks import ATTACKS, AttackCase, scale
from rewards.reward import totals
from rewards.verify import Status, verify
from rewards.wheel import build


@cache
def answers() -> list[tuple[Problem, str]]:
    """1,000 answers of every kind: policies that cheat, blind ones, gold."""
    made = []
    for tier in ("dense", "rules", "busy"):
        problems = slotwise.take(tier, 12, 3)
        golds = [optimal_schedule(problem) for problem in problems]
        for i, problem in enumerate(problems):
            case = AttackCase(problem, golds[i], golds[i - 1], random.Random(i))
            attacks = [attack.make(case) for attack in ATTACKS.values()]
            texts = [*filter(None, attacks), *scale(case).values()]
            made += [(problem, text) for text in texts]
    return made[:1000]


def agree(score, shape: str = "graded") -> None:
    """Check ``score`` of a problem and an answer against the reward and the verdict."""
    optimal = 0
    for problem, text in answers():
        [paid] = totals(RewardSection(shape=shape), [problem.text], [text])
        found = score(problem, text)
        assert found == paid
        right = verify(problem, text).status == Status.OPTIMAL
        assert (found == 1) == right
        optimal += right
    assert len(answers()) == 1000
    assert 30 < optimal < 500


@pytest.mark.parametrize("shape", ["graded", "binary"])
def test_the_score_is_what_the_reward_pays(shape):
    agree(lambda problem, text: slotwise.score(problem, text, shape), shape)


def test_an_environment_of_trl_pays_the_same():
    env = slotwise.ScheduleEnv()

    def score(problem: Problem, text: str) -> float:
        env.reset(problem=problem.text, prompt="…")
        env.submit(text)
        return env.get_reward()

    agree(score)


def test_a_data_set_of_reasoning_gym_scores_the_same():
    gym = pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    importlib.import_module("rewards.environments.gym")  # registers it
    data = gym.create_dataset("slotwise", tier="rules", size=3, seed=3)
    assert all(data.score_answer(entry["answer"], entry) == 1 for entry in data)
    assert data.score_answer(None, data[0]) == 0
    agree(lambda problem, text: data.score_answer(text, {"metadata": {"problem": problem.text}}))


def test_a_taskset_of_verifiers_scores_the_same(monkeypatch):
    pytest.importorskip("verifiers.v1", reason="verifiers is not installed")
    from verifiers.v1.utils.loaders import load_taskset

    from rewards.environments.taskset import SlotwiseConfig

    monkeypatch.setitem(sys.modules, "slotwise", slotwise)  # as the wheel has it

    taskset = load_taskset(SlotwiseConfig(id="slotwise", num_tasks=2))
    task = next(iter(taskset))

    def score(problem: Problem, text: str, cut_off: bool = False) -> float:
        trace = SimpleNamespace(is_truncated=cut_off, last_reply=text)
        return asyncio.run(task.with_data(problem=problem.text).schedule(trace))

    agree(score)
    problem = next(slotwise.problems("dense"))
    assert score(problem, gold_answer(problem, "none"), cut_off=True) == 0


def test_problems_of_a_file_are_read_and_what_is_left_out_is_named(tmp_path):
    problem = next(slotwise.problems("rules"))
    spoilt = {**problem.to_json(), "optimum": 1}
    path = tmp_path / "p.jsonl"
    path.write_text(f"{json.dumps(spoilt)}\n{json.dumps({'problem': problem.text})}\n")
    with pytest.warns(UserWarning, match=r"p\.jsonl:1: "):
        assert slotwise.take(str(path), 1, 0) == [problem]
    with pytest.warns(match="left out"):
        refusal_of(lambda: slotwise.take(str(path), 2, 0), "p.jsonl", "1 sound problems, not 2")


def test_an_answer_may_be_mended_until_the_tries_are_used_up():
    problem = next(slotwise.problems("rules"))
    env = slotwise.ScheduleEnv(RewardSection(shape="binary"))
    env.reset(json.loads(problem.text))
    assert env.get_reward() == 0
    every = ATTACKS["copy every event"].make(
        AttackCase(problem, optimal_schedule(problem), None, random.Random(0))
    )
    assert "overlap" in env.submit(every)
    assert "Cannot be read" in env.submit("no schedule")
    assert f"{problem.optimum} weighted minutes" in env.submit(gold_answer(problem, "none"))
    assert "No tries are left" in env.submit(every)
    assert env.get_reward() == 1
    env.reset(problem.text)
    assert env.get_reward() == 0


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: next(slotwise.problems("dens")), "dense"),
        (lambda: next(slotwise.problems("some/missing.jsonl")), "does not exist"),
        (lambda: slotwise.score("{}", "", "graded"), '"events"'),
        (lambda: slotwise.score("{}", "", "ranked"), "binary, graded"),
        (lambda: slotwise.ScheduleEnv().reset({"events": []}), '"priorities"'),
    ],
)
def test_a_mistake_is_one_sentence(call, named):
    refusal_of(call, named)


def test_making_the_wheel_needs_nothing_but_python_and_gives_the_same_bytes(tmp_path):
    done = python("-S", "-m", "rewards.wheel", "--out", tmp_path / "here")
    assert done.returncode == 0, done.stderr
    [made] = (tmp_path / "here").iterdir()
    assert made.read_bytes() == build(tmp_path).read_bytes()
    with ZipFile(made) as wheel:
        record = f"{made.name.removesuffix('-py3-none-any.whl')}.dist-info/RECORD"
        listed = [line.rsplit(",", 2)[0] for line in wheel.read(record).decode().splitlines()]
        assert sorted(listed) == sorted(wheel.namelist())


def brought_by(names):
    """The names of distributions, with all that they require in turn."""
    brought, asked = set(), [*names]
    while asked:
        name = canonicalize_name(asked.pop())
        if name not in brought:
            brought.add(name)
            needs = map(Requirement, requires(name) or ())
            asked += [one.name for one in needs if not one.marker or one.marker.evaluate()]
    return brought


def test_the_wheel_stands_alone_with_what_it_requires(tmp_path):
    with ZipFile(build(tmp_path)) as wheel:
        wheel.extractall(tmp_path / "site")
    [facts] = (tmp_path / "site").glob("*.dist-info/METADATA")
    listed = Parser().parsestr(facts.read_text()).get_all("Requires-Dist")
    there = brought_by(Requirement(one).name for one in listed)
    absent = {"data", "rewards", "pipeline"} | {
        module
        for module, of in packages_distributions().items()
        if not there & set(map(canonicalize_name, of))
    }
    assert "torch" in absent
    log = tmp_path / "outputs" / "checkpoint-29" / "trainer_state.json"
    log.parent.mkdir(parents=True)
    rows = [{"loss": 1 / (i + 1), "step": i, "epoch": 0.1} for i in range(30)]
    log.write_text(json.dumps({"log_history": rows}))
    code = """
import sys
class Absent:
    def find_spec(name, *_):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent)
sys.path.insert(0, "site")
import slotwise
from slotwise.data.rows import gold_answer
problem = next(slotwise.problems("rules"))
assert problem.events[0].name in slotwise.prompt(problem)
assert slotwise.score(problem, gold_answer(problem, "none")) == 1
from slotwise.pipeline.doctor import command
command()
"""
    done = python("-I", "-c", f"ABSENT = {absent}\n{code}", "outputs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "outputs" in done.stdout
