"""The data stage: what it writes, that it is the same anywhere, and what stops it."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from problems import brute_force, day
from running import refusal_of, rows_in

from data import draw, recipe
from data.clock import CLOCK
from data.common.files import read_jsonl, write_jsonl
from data.draw import make_problem
from data.make import run
from data.policies import FLOOR_KS, GUESSABLE, floor
from data.problem import Problem
from data.prompts import prompt
from data.rows import gold_answer, new_row, read_problems, row_to_json
from data.rules import BASE_RULES
from data.sections import SPLITS, RewardSection
from data.solver import UnprovenError, prove
from data.tiers import TIERS, Tier
from rewards.parse import parse
from rewards.reward import reward_functions
from rewards.verify import Status, confirm, verify

OUTPUTS = ("train.jsonl", "val.jsonl", "test.jsonl", "floors.json", "README.md")
SMALL = {
    "name": "small",
    "seed": 7,
    "model": "some/model",
    "data": {
        "main": "dense",
        "tiers": {
            "dense": {"train": 70, "val": 3, "test": 6},
            "trap": {"train": 5, "val": 2, "test": 4},
            "blog": {"train": 9, "test": 4},
        },
    },
    "sft": {},
    "grpo": {},
}


def stage(folder: Path, content: dict, force: bool = False) -> Path:
    """Run the stage on a recipe below ``folder``; where its data are."""
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "RUNS", folder / "runs")
        loaded = recipe.load_recipe(path)
        run(loaded, force)
        return loaded.run.folder / "data"


def with_data(**changes: object) -> dict:
    """The recipe with other keys in its section of data."""
    return {**SMALL, "data": {**SMALL["data"], **changes}}


def with_tiers(**tiers: dict) -> dict:
    return with_data(tiers={**SMALL["data"]["tiers"], **tiers})


def rows_of(folder: Path) -> dict[str, dict]:
    return {row["id"]: row for split in SPLITS for _, row in read_jsonl(folder / f"{split}.jsonl")}


def content_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return stage(tmp_path_factory.mktemp("made"), SMALL)


def test_the_card_names_the_tiers_whose_gold_answers_cannot_reason(tmp_path):
    folder = stage(tmp_path, with_tiers(gap={"train": 2}, at_most={"train": 2}))
    card = (folder / "README.md").read_text().splitlines()
    [said] = [line for line in card if "reasoning trace" in line]
    rows = rows_of(folder).values()
    for tier in ("dense", "gap", "at_most"):
        reasons = {row["gold"].startswith("<think>") for row in rows if row["tier"] == tier}
        assert reasons == {tier != "at_most"}
    assert "at_most" in said
    assert "gap" not in said


def test_a_share_of_the_gold_answers_reasons_and_the_others_have_the_schedule_alone(tmp_path):
    rows = rows_of(stage(tmp_path, with_data(reasoned=0.5))).values()
    golds = [row["gold"] for row in rows]
    reasoned = sum(gold.startswith("<think>") for gold in golds)
    assert 0.3 < reasoned / len(golds) < 0.7
    assert all("<schedule>" in gold for gold in golds)


def test_each_split_has_as_many_problems_of_each_tier_as_asked_for(made):
    for split in SPLITS:
        rows = rows_in(made / f"{split}.jsonl")
        for tier, use in SMALL["data"]["tiers"].items():
            ids = [row["id"] for row in rows if row["tier"] == tier]
            assert ids == [f"{split}-{tier}-{i:05d}" for i in range(use.get(split, 0))]
        assert {row["split"] for row in rows} == {split}


def checked(row: dict) -> Problem:
    """The problem of a row that carries all that its verification needs, its optimum found by
    brute force, its gold answer optimal for the plain checks and for CP-SAT."""
    assert list(row) == ["id", "split", "tier", "problem", "optimum", "gold", "prompt"]
    problem = Problem.from_json(row["problem"])
    assert row["problem"] == json.loads(json.dumps(problem.to_json()))
    assert row["prompt"] == prompt(problem)
    assert row["optimum"] == problem.optimum == brute_force(problem)[0]
    assert verify(problem, row["gold"]).status == Status.OPTIMAL
    assert confirm(problem, parse(row["gold"])).status == Status.OPTIMAL
    return problem


def test_a_row_carries_all_that_its_verification_needs(made):
    for row in rows_of(made).values():
        checked(row)


def test_no_problem_stands_twice_and_gold_has_a_trace_unless_that_is_off(made, tmp_path):
    plain = rows_of(stage(tmp_path, with_data(reasoning="none")))
    prints = {Problem.from_json(row["problem"]).fingerprint for row in plain.values()}
    assert len(prints) == len(plain) == 103
    for identity, row in rows_of(made).items():
        thought, _, schedule = row["gold"].partition("</think>\n")
        assert thought.startswith("<think>\n")
        assert plain[identity] == {**row, "gold": schedule}


def test_the_floors_are_those_of_the_test_problems_written(made):
    floors = json.loads((made / "floors.json").read_text())
    problems = {tier: [] for tier in SMALL["data"]["tiers"]}
    for row in read_problems(made / "test.jsonl"):
        problems[row["tier"]].append(row["problem"])
    assert floors == json.loads(json.dumps({tier: floor(some) for tier, some in problems.items()}))


def test_problems_with_further_rules_are_written_with_all_that_their_verification_needs(tmp_path):
    uses = {name: {"train": 3, "val": 1, "test": 4} for name in ("rules", "gap", "at_most")}
    for row in rows_of(stage(tmp_path, with_data(main="rules", tiers=uses))).values():
        further = checked(row).rules[len(BASE_RULES) :]
        assert all(f"- {rule.sentence()}\n" in row["prompt"] for rule in further)
        assert row["tier"] in ("rules", *(rule.kind for rule in further))


def test_the_card_has_counts_floors_fingerprints_and_the_tiers_that_can_be_guessed(made):
    card = (made / "README.md").read_text()
    assert "`small`" in card
    assert "\nlicense: apache-2.0\n" in card
    assert "seed 7." in card
    for tier, use in SMALL["data"]["tiers"].items():
        cells = " | ".join(str(use.get(split, 0)) for split in SPLITS)
        assert f"\n| {tier} | {cells} | events " in card
    floors = json.loads((made / "floors.json").read_text())
    for tier, policies in floors.items():
        for policy, values in policies.items():
            cells = " | ".join(f"{values[str(k)]:.1%}" for k in FLOOR_KS)
            assert f"\n| {tier} | {policy.replace('_', ' ')} | {cells} |\n" in card
    for split in SPLITS:
        prints = sorted(r["problem"].fingerprint for r in read_problems(made / f"{split}.jsonl"))
        assert f"\n- {split}: `{hashlib.sha256(''.join(prints).encode()).hexdigest()}`" in card
    reached = {tier: found["random_maximal"]["64"] for tier, found in floors.items()}
    guessed = [f"{tier} ({p:.1%})" for tier, p in reached.items() if p > GUESSABLE]
    [line] = [x for x in card.splitlines() if "*Guessable*" in x]
    assert line.endswith(f": {', '.join(guessed) or 'none'}.")


def test_the_folder_is_a_dataset_that_loads_its_own_rows_also_when_made_again(tmp_path):
    import datasets

    datasets.disable_progress_bars()
    other = {**SMALL, "name": "other", "seed": 8}
    for content in (SMALL, other, with_data(reasoning="none")):
        folder = stage(tmp_path, content, force=True)
        loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
        golds = [row["gold"] for row in read_problems(folder / "test.jsonl")]
        assert loaded["test"]["gold"] == golds
        assert [len(loaded[split]) for split in ("train", "val", "test")] == [84, 5, 14]
        row = loaded["test"][0]
        assert reward_functions(RewardSection())[0]([row["gold"]], [row["problem"]]) == [1]


# --- the same anywhere ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [{}, {"seed": 8}, with_tiers(blog={"train": 1, "test": 4})],
    ids=["force", "seed", "counts"],
)
def test_force_writes_the_same_bytes_anew_and_a_changed_recipe_others(tmp_path, made, change):
    folder = stage(tmp_path, SMALL)
    for name in OUTPUTS:
        (folder / name).write_text("old")
    stage(tmp_path, SMALL | change, force=not change)
    content = content_of(folder)
    assert b"old" not in content.values()
    assert (content == content_of(made)) == (not change)


def test_what_is_finished_is_kept_though_what_training_alone_reads_has_changed(tmp_path, capsys):
    folder = stage(tmp_path, SMALL)
    (folder / "train.jsonl").write_text("kept")
    other = {"grpo": {"max_steps": 3}, "reward": {"shape": "binary"}}
    stage(tmp_path, {**SMALL, **other})
    assert f"data: up to date ({folder})" in capsys.readouterr().out
    assert (folder / "train.jsonl").read_text() == "kept"


def test_a_problem_is_this_one_on_every_machine():
    """Pinned, so that a change of all data is a decision and not an accident."""
    tier = Tier((4, 4), ("09:00", "14:00"), 5, (15, 120, 15), None, (0.2, 0.4))
    assert make_problem(7, "test", "pinned", tier, 0).to_json()["events"] == [
        ["Game jam", "09:15", "10:15"],
        ["Spanish exam", "09:35", "10:05"],
        ["Baking workshop", "12:00", "13:15"],
        ["Band practice", "12:10", "12:55"],
    ]


def test_a_problem_is_the_same_whatever_else_is_generated(made, tmp_path):
    alone = with_data(tiers={"dense": {"train": 1, "val": 9, "test": 8}})
    other, rows = rows_of(stage(tmp_path, alone)), rows_of(made)
    shared = rows.keys() & other.keys()
    assert len(shared) == 1 + 3 + 6
    assert all(rows[identity] == other[identity] for identity in shared)


def test_splits_tiers_and_draws_have_streams_of_their_own():
    tier, first = TIERS["dense"], (7, "test", "dense")
    others = (7, "train", "dense"), (7, "test", "other"), (8, "test", "dense")
    drawn = [make_problem(*path, tier, 0) for path in (first, *others)]
    drawn += [make_problem(*first, tier, 1), make_problem(*first, tier, 0, draw=1)]
    assert len({problem.fingerprint for problem in drawn}) == 6


#: One event of half an hour at 9:00, 9:10, 9:20 or 9:30.
FOUR = {
    "events": [1, 1],
    "durations": [30, 30, 15],
    "window": ["09:00", "10:00"],
    "grid": 10,
    "priorities": [1, 1],
}


def test_a_problem_that_a_split_has_already_is_drawn_again_while_there_are_others(tmp_path):
    four = with_data(tiers={"dense": {"train": 2, "val": 1, "test": 1, **FOUR}})
    starts = [row["problem"]["events"][0][1] for row in rows_of(stage(tmp_path, four)).values()]
    assert sorted(starts) == ["09:00", "09:10", "09:20", "09:30"]
    five = with_data(tiers={"dense": {"train": 5, "val": 1, "test": 1, **FOUR}})
    refusal_of(lambda: stage(tmp_path, five), "tier 'dense' has fewer than 5 different problems")


# --- impossible tiers ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tier", "patched", "value", "names"),
    [
        ("rules", "data.tiers.ATTEMPTS", 0, "no problem in 0 draws"),
        ("dense", "data.draw.prove", lambda *_: None, "no feasible problem"),
        ("dense", "data.draw.EFFORT", 0, "no feasible problem with a proof"),
        ("rules", "data.draw.EFFORT", 0, "no feasible problem with a proof"),
    ],
)
def test_a_tier_without_a_proven_problem_is_one_sentence(tier, patched, value, names, monkeypatch):
    monkeypatch.setattr(patched, value)
    refusal_of(lambda: make_problem(7, "test", tier, TIERS[tier], 0), f"tier '{tier}': {names}")


def test_draws_without_a_proof_are_dropped(tmp_path, monkeypatch):
    real = draw.prove

    def prove(problem: Problem, effort: float | None = None):
        assert effort == draw.EFFORT
        if problem.events[0].start % 30:
            raise UnprovenError
        return real(problem, effort)

    monkeypatch.setattr(draw, "prove", prove)
    rows = rows_of(stage(tmp_path, SMALL)).values()
    assert not any(Problem.from_json(row["problem"]).events[0].start % 30 for row in rows)


def test_a_gold_answer_below_the_proven_optimum_is_an_error_of_ours():
    problem = make_problem(7, "test", "dense", TIERS["dense"], 0)
    with pytest.raises(AssertionError, match="disagree"):
        gold_answer(problem.proven(problem.optimum + 5), reasoning="none")


@pytest.mark.parametrize("missing", BASE_RULES)
def test_a_problem_that_lacks_a_base_rule_is_made_and_read_as_cp_sat_solves_it(tmp_path, missing):
    rules = tuple(rule for rule in BASE_RULES if rule != missing)
    problem = replace(day(), rules=rules, optimum=0)
    best = prove(problem)
    row = new_row("p", "test", "own", problem.proven(problem.objective(best)), "computed")
    write_jsonl(tmp_path / "p.jsonl", [row_to_json(row)])
    [read] = read_problems(tmp_path / "p.jsonl")
    assert verify(read["problem"], read["gold"]).status == Status.OPTIMAL


# --- imported problems ---------------------------------------------------------------------


def published(index: int, end: str | None = None, optimum: int = 60) -> dict:
    """A row in the published layout: one event of an hour, at another minute for each index."""
    start = 540 + 5 * index
    return {
        "index": index,
        "events": [["Art", CLOCK[start], end or CLOCK[start + 60]]],
        "priority_events": [],
        "optimal_score": optimum,
        "prompt": "…",
    }


@pytest.fixture
def imported(tmp_path):
    """A function that makes data of published rows; it returns the starts in each split."""

    def make_of(training: list[dict], tests: list[dict], **counts: int) -> dict[str, list[str]]:
        for split, rows in (("train", training), ("test", tests)):
            write_jsonl(tmp_path / f"p-{split}.jsonl", rows)
        tier = {"source": str(tmp_path / "p-{split}.jsonl"), **counts}
        rows = rows_of(stage(tmp_path, with_data(main="only", tiers={"only": tier})))
        starts = {split: [] for split in SPLITS}
        for row in rows.values():
            starts[row["split"]].append(CLOCK[checked(row).events[0].start])
        return starts

    return make_of


def test_published_problems_keep_their_split_and_unsound_rows_are_named(imported, capsys):
    train = [published(i) for i in range(6)]
    train[1] = published(1, end="24:20")
    train[3] = published(3, optimum=61)
    starts = imported(train, [published(i) for i in (10, 11)], train=2, val=2, test=2)
    assert starts == {
        "train": ["09:00", "09:10"], "val": ["09:25", "09:20"], "test": ["09:50", "09:55"]
    }  # fmt: skip
    out = capsys.readouterr().out
    assert "p-train.jsonl:2: '24:20' is not a time" in out
    assert 'p-train.jsonl:4: "optimal_score" is 61, the proven optimum 60' in out
    assert out.count("left out") == 2


def test_a_problem_of_the_test_file_is_not_taken_for_training(imported):
    starts = imported([published(i) for i in range(4)], [published(0)], train=2, val=1, test=1)
    assert starts == {"train": ["09:05", "09:10"], "val": ["09:15"], "test": ["09:00"]}


def test_rows_in_no_splits_are_one_source(tmp_path):
    path = tmp_path / "all.jsonl"
    write_jsonl(path, map(published, range(4)))
    tier = {"source": str(path), "train": 2, "val": 1, "test": 1}
    folder = stage(tmp_path, with_data(main="only", tiers={"only": tier}))
    rows = rows_of(folder)
    assert "license:" not in (folder / "README.md").read_text()
    assert len({json.dumps(row["problem"]) for row in rows.values()}) == len(rows) == 4


def test_too_few_sound_rows_are_one_sentence(imported):
    train = [published(0), published(0), published(1)]
    said = refusal_of(lambda: imported(train, [published(2)], train=2, val=1, test=1))
    assert said.endswith("p-{split}.jsonl has 1 sound train problems, not 2")


def test_a_changed_source_makes_the_data_anew(imported, capsys):
    train, counts = [published(0), published(1)], {"train": 1, "val": 1, "test": 1}
    imported(train, [published(2)], **counts)
    imported(train, [published(2)], **counts)
    assert "up to date" in capsys.readouterr().out
    assert imported(train, [published(3)], **counts)["test"] == ["09:15"]
    assert "up to date" not in capsys.readouterr().out


# --- reading problems ----------------------------------------------------------------------


def with_problem(row: dict, **changes: object) -> dict:
    return {**row, "problem": {**row["problem"], **changes}}


@pytest.mark.parametrize(
    ("spoil", "names"),
    [
        (lambda row: json.dumps(row)[:-5], "JSON"),
        (lambda row: '{"id": ' + "9" * 5000 + "}", "JSON"),
        (lambda row: row.pop("gold") and row, "'gold'"),
        (lambda row: {**row, "gold": "\ud83d"}, "'gold'"),
        (lambda row: {**row, "prompt": ["a"]}, "'prompt'"),
        (lambda row: row.pop("problem") and row, "a problem must be"),
        (lambda row: row.pop("prompt") and row, "'prompt'"),
        (lambda row: with_problem(row, optimum=None), '"optimum"'),
        (lambda row: with_problem(row, optimum=float("nan")), '"optimum"'),
        (lambda row: with_problem(row, optimum=5), '"optimum" is 5'),
        (lambda row: with_problem(row, optimum=row["optimum"] + 1), '"optimum"'),
        (lambda row: with_problem(row, events=[["Art", "23:30", "24:30"]]), "'24:30'"),
        (lambda row: with_problem(row, priorities=["Nobody"]), "'Nobody'"),
        (lambda row: {**row, "problem": "a day"}, "JSON object"),
    ],
)
def test_a_corrupt_problem_is_named_with_its_line(made, tmp_path, spoil, names):
    lines = (made / "test.jsonl").read_text().splitlines()
    spoilt = spoil(json.loads(lines[2]))
    lines[2] = spoilt if isinstance(spoilt, str) else json.dumps(spoilt)
    path = tmp_path / "test.jsonl"
    path.write_text("\n".join(lines))
    assert refusal_of(lambda: read_problems(path), names).startswith(f"{path}:3")


def test_a_line_that_is_there_twice_is_named_with_the_first(made, tmp_path):
    lines = (made / "test.jsonl").read_text().splitlines()
    path = tmp_path / "test.jsonl"
    path.write_text("\n".join([*lines, lines[2]]))
    id_ = json.loads(lines[2])["id"]
    refusal_of(lambda: read_problems(path), f"{path}:{len(lines) + 1}", f"id '{id_}'", "line 3")


def test_a_file_without_problems_says_how_to_write_them(tmp_path):
    path = tmp_path / "test.jsonl"
    refusal_of(lambda: read_problems(path), f"{path} does not exist")
    path.write_text("\n")
    refusal_of(lambda: read_problems(path), f"{path} has no problems", "`make data FORCE=1`")
