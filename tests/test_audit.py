"""The audit: what answers that solve nothing earn, and what it refuses."""

import json
import random
import re
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from problems import random_problem
from running import BLOG, needs_blog, refusal_of

import rewards.audit
from data.common.files import stage_facts
from data.draw import make_problem
from data.event import Event
from data.policies import feasible_schedules
from data.problem import Problem
from data.published import read_published
from data.sections import RewardSection
from data.solver import interval_optimum, optimal_schedule
from data.tiers import TIERS
from rewards.attacks import ATTACKS, AttackCase, near_optimal, references, scale
from rewards.audit import CEILING, Audit, audit, gate, main
from rewards.scoring import Earnings, surely_above
from rewards.verify import Status, verify

AUDITED = ("dense", "trap", "blog", "rules", "gap", "at_most")
GRADED, BLOG_REWARD = RewardSection("graded"), RewardSection("blog")


@cache
def problems(tier: str, count: int = 30) -> list[Problem]:
    return [make_problem(1, "audit", tier, TIERS[tier], index) for index in range(count)]


@cache
def outcome(shape: str, tier: str) -> Audit:
    return audit(RewardSection(shape), {tier: problems(tier)}, seed=5)


def case(problem: Problem, stranger=None) -> AttackCase:
    return AttackCase(problem, optimal_schedule(problem), stranger, random.Random(3))


def rows_of(found: Audit) -> dict[str, Earnings]:
    return {row.policy: row for row in found.rows}


@pytest.mark.parametrize("tier", AUDITED)
def test_no_attack_is_a_right_answer_nor_better_than_it_says(tier):
    order = list(Status)
    golds = [optimal_schedule(problem) for problem in problems(tier)]
    made = dict.fromkeys(ATTACKS, 0)
    for i, problem in enumerate(problems(tier)):
        for name, attack in ATTACKS.items():
            completion = attack.make(case(problem, golds[i - 1]))
            if completion is not None:
                made[name] += 1
                status = verify(problem, completion).status
                assert order.index(status) >= order.index(attack.at_best), name
                assert status != Status.OPTIMAL, name
    assert len(made) == 31
    some = {name for name, count in made.items() if count}
    assert some == set(ATTACKS) - (set() if problems(tier)[0].rules[3:] else {"rules ignored"})


def test_an_attack_that_would_be_right_is_left_out():
    alone = Problem((Event(540, 600, "Art"),), ("Art",), optimum=120)
    left_out = {name for name, attack in ATTACKS.items() if attack.make(case(alone)) is None}
    assert left_out >= {
        "copy every event", "shortest valid answer", "one longest event", "first two events",
        "all priorities", "gold and one event more", "gold of another problem", "unsorted gold",
        "rules ignored",
    }  # fmt: skip


def test_a_shifted_time_differs_at_the_end_of_the_day_too():
    for end, start in ((1439, 1435), (1439, 1434), (5, 0), (6, 0)):
        problem = Problem((Event(start, end, "Art"),), (), optimum=end - start)
        shifted = ATTACKS["gold with a time shifted"].make(case(problem))
        assert verify(problem, shifted).status == Status.INFEASIBLE


def test_the_next_best_schedule_is_the_best_below_the_optimum():
    rng = random.Random(4)
    some = [
        p.proven(p.objective(interval_optimum(p))) for p in (random_problem(rng) for _ in range(60))
    ]
    for problem in (*some, *problems("rules"), *problems("gap")):
        values = {problem.objective(s) for s in feasible_schedules(problem)} - {problem.optimum}
        near = near_optimal(problem)
        assert (near is None) == (not values)
        if near:
            assert problem.is_feasible(near)
            assert problem.objective(near) == max(values)


def test_what_stands_beside_the_attacks_is_feasible_but_for_one_spoilt_gold():
    for tier in AUDITED:
        for problem in problems(tier)[:5]:
            for name, completion in scale(case(problem)).items():
                status = verify(problem, completion).status
                assert status in (Status.OPTIMAL, Status.FEASIBLE)
                assert (status == Status.OPTIMAL) >= (name == "gold")
            group = [verify(problem, text).status for text in references(case(problem))]
            assert group[4:] == [Status.OPTIMAL, Status.INFEASIBLE]
            assert set(group[:4]) <= {Status.OPTIMAL, Status.FEASIBLE}


@pytest.mark.parametrize("tier", AUDITED)
@pytest.mark.parametrize("shape", ["graded", "binary", "ranked", "passk", "rare", "reasoned"])
def test_a_sound_reward_pays_no_attack_above_the_ceiling_or_a_random_schedule(shape, tier):
    found = outcome(shape, tier)
    assert found.failures == ()
    assert found.disagreements == ()
    assert found.best_attack.of_gold <= CEILING
    rows = rows_of(found)
    attacks = {row.policy for row in found.rows if row.kind != "scale"}
    assert attacks <= {*ATTACKS, "search"}
    assert all(rows[name].optimal == 0 for name in attacks)


def test_the_answers_are_the_same_under_every_shape_and_others_with_another_seed():
    def judged(shape: str, seed: int) -> dict[str, tuple]:
        found = audit(RewardSection(shape), {"rules": problems("rules")[:5]}, seed)
        rows = (row for row in found.rows if row.policy != "search")
        return {row.policy: (row.n, row.feasible, row.optimal) for row in rows}

    assert judged("graded", 1) == judged("ranked", 1)
    some = {"dense": problems("dense")[:5]}
    assert audit(GRADED, some, 1) == audit(GRADED, some, 1)
    assert audit(GRADED, some, 1).rows != audit(GRADED, some, 2).rows


def test_a_row_says_what_was_earned():
    rows = rows_of(outcome("graded", "dense"))
    gold, empty, search = (rows[policy] for policy in ("gold", "empty", "search"))
    assert (gold.mean, gold.max, gold.optimal, gold.of_gold) == pytest.approx((1,) * 4)
    assert (empty.mean, empty.max, empty.feasible, empty.of_gold) == (0, 0, 0, 0)
    assert (search.max, search.feasible) == (pytest.approx(0.05), 0)  # as any infeasible schedule
    feasible = rows["random feasible"]
    assert feasible.above_feasible == 0
    longest = rows["one longest event"]
    assert longest.above_feasible == pytest.approx(longest.mean - feasible.mean)
    assert longest.above_feasible_low < longest.above_feasible < 0


def test_a_reward_for_the_form_alone_fails_by_the_ceiling():
    found = audit(RewardSection("graded", {"format": 1.0}), {"dense": problems("dense")}, 0)
    assert any("'format only' earns 1.000" in failure for failure in found.failures)
    assert "50%" in found.failures[0]


def test_an_answer_paid_as_much_as_an_optimal_one_fails(monkeypatch):
    monkeypatch.setattr(rewards.audit, "CEILING", 1.0)
    found = audit(RewardSection("graded", {"validity": 1.0}), {"dense": problems("dense")}, 0)
    [failure] = found.failures
    assert "does not follow the verdict on 30 of 30 problems" in failure
    assert "(feasible) with 1.000 against" in failure


def test_below_the_ceiling_more_than_a_random_schedule_is_too_much(monkeypatch):
    monkeypatch.setattr(rewards.audit, "CEILING", 1.0)
    found = audit(BLOG_REWARD, {"blog": problems("blog")}, 0)
    [failure] = [f for f in found.failures if "'decoy in the reasoning'" in f]
    assert re.search(r"more than a random feasible schedule \(at least \d", failure)


def test_what_chance_may_explain_is_no_failure():
    assert surely_above([0.2]) is None
    assert surely_above([0.2, 0.2]) == pytest.approx(0.2)
    assert surely_above([0.9, -0.7, 0.9, -0.7]) < 0 < surely_above([0.9, 0.7] * 50)


def test_the_published_reward_fails_on_every_count_and_the_search_finds_its_maximum():
    found = outcome("blog", "blog")
    text = "\n".join(found.failures)
    assert "'copy every event' earns" in found.failures[0]
    assert "'decoy in the reasoning' earns" in text
    assert "the best spoilt answer of the search earns" in text
    assert "the reward does not follow the verdict on 30 of 30 problems" in text
    assert rows_of(found)["search"].mean > 95


def test_a_disagreement_can_be_played_again():
    [pair] = json.loads(json.dumps(outcome("blog", "blog").to_json()))["disagreements"]
    problem = Problem.from_json(json.loads(pair["problem"]))
    more, less = pair["earns_more"], pair["earns_less"]
    assert more["reward"] - less["reward"] == pair["gap"] > 50
    for answer in (more, less):
        judged = verify(problem, answer["completion"]).to_json()
        assert answer["verdict"].items() <= judged.items()


@needs_blog
def test_on_the_published_data_copying_every_event_earns_69_of_100_and_fails():
    files = [BLOG / f"{name}.jsonl" for name in ("train", "test")]
    published = [p for file in files for p, _ in read_published(str(file))[0]]
    found = audit(BLOG_REWARD, {"published": published}, 0)
    copied = rows_of(found)["copy every event"]
    assert copied.n == 594  # of 596: on two problems it is the optimum
    assert copied.mean == pytest.approx(69.4, abs=0.1)
    assert found.failures[0].startswith("published: 'copy every event' earns 69.")


def at_the_gate(shape: str, unsound: bool = False) -> None:
    some = {tier: problems(tier)[:8] for tier in ("dense", "rules")}
    gate(RewardSection(shape, unsound=unsound), some, 0, "a.yaml")


def test_the_gate_lets_a_sound_reward_pass_in_one_line(capsys):
    at_the_gate("graded")
    [line] = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"audit: the reward 'graded' is sound; .* \d+% of gold's .*", line)


def test_the_gate_refuses_an_unsound_reward_unless_told_to_train_all_the_same(capsys):
    refusal_of(lambda: at_the_gate("blog"), "a.yaml: ", "'blog'", "% of gold", "`unsound: true`")
    at_the_gate("blog", unsound=True)
    warning = capsys.readouterr().out
    assert warning.startswith("WARNING")
    assert "of gold's reward" in warning


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs ``python -m rewards.audit`` here, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    uses = {name: {"train": 8, "val": 4, "test": 4} for name in ("dense", "rules")}
    recipe = {"name": "a", "model": "m", "data": {"main": "dense", "tiers": uses}}

    def run(shape: str, *flags: str) -> dict:
        content = {**recipe, "sft": {}, "grpo": {}, "reward": {"shape": shape}}
        Path("a.yaml").write_text(yaml.safe_dump(content))
        monkeypatch.setattr(sys, "argv", ["audit", "--recipe", "a.yaml", *flags])
        main()
        return json.loads(Path("runs/a/audit/audit.json").read_text())

    return run


def test_the_audit_prints_and_writes_a_table_a_tier(command, capsys):
    found = command("graded", "--problems", "5")
    assert found["sound"] is True
    assert {row["tier"] for row in found["rows"]} == {"dense", "rules"}
    assert "runs/a/audit" in capsys.readouterr().out
    written = Path("runs/a/audit/audit.md").read_text()
    assert "## dense" in written
    assert "## rules" in written
    for name in (*ATTACKS, "gold", "near-optimal", "random feasible", "random maximal", "search"):
        assert f"| {name} |" in written
    tables = [line for line in written.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in tables}) == 1
    assert stage_facts(Path("runs/a/audit"))["failures"] == 0


def test_a_failing_audit_is_written_and_ends_in_one_sentence(command, capsys):
    refusal_of(lambda: command("blog", "--problems", "5", "--tiers", "dense"), "'blog'", "audit.md")
    assert "fails: dense: " in capsys.readouterr().out
    assert "- **fails:** dense: " in Path("runs/a/audit/audit.md").read_text()
    assert json.loads(Path("runs/a/audit/audit.json").read_text())["sound"] is False


def test_any_tier_can_be_audited_whether_the_recipe_has_it_or_not(command):
    found = command("graded", "--problems", "3", "--tiers", "gap")
    assert {row["tier"] for row in found["rows"]} == {"gap"}
    refusal_of(lambda: command("graded", "--tiers", "dens"), "--tiers: ", "'dens'", "'dense'")
    refusal_of(lambda: command("graded", "--problems", "0"), "--problems")
