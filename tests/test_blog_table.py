"""``make blog``: the published table comes out exactly, with what it hides, and every departure
from the published settings is named."""

import json
from pathlib import Path

import pytest
from conftest import BLOG, tier_problems
from scripted import World, solving

from data.common.errors import UserError
from data.common.files import stage_facts, write_jsonl
from data.policies import floor
from data.prompts import answer
from data.recipe import load_recipe
from data.rows import new_row, row_to_json
from data.solver import optimal_schedule
from eval.answers.files import ProblemFile
from eval.answers.sampling import sample_arm
from eval.blog import (
    PUBLISHED,
    asked,
    begin,
    departures,
    differences,
    line,
    lines_of_files,
    run,
    sheets,
)
from rewards import blog

TINY = PUBLISHED.with_name("blog-tiny.yaml")
#: How many of 100 published answers are optimal, and the average score.
KNOWN = {
    "Qwen2.5-Coder-7B-Instruct": (5, "0.0805"),
    "Qwen2.5-Coder-14B-Instruct": (31, "0.4585"),
    "qwen-scheduler-7b-grpo_2epochs": (37, "0.6226"),
}
needs_blog = pytest.mark.skipif(
    not BLOG.is_dir(), reason="the published data is not beside the project"
)


# --- the table -------------------------------------------------------------------------------


@needs_blog
def test_the_published_table_comes_out_exactly_with_what_it_hides():
    problems, lines = lines_of_files(BLOG)
    expected = json.loads((BLOG / "expected.json").read_text())
    assert {one.model for one in lines} == set(expected) == set(KNOWN)
    for one in lines:
        published, (optimal, shown) = expected[one.model], KNOWN[one.model]
        assert one.statuses == published["counts"]
        assert one.score == published["average_score"]
        assert f"{one.score:.4f}" == shown
        assert one.reward == pytest.approx(sum(published["mean_rewards"].values()))
        assert one.optimal.value == pytest.approx(optimal / 100)
        assert one.optimal.low < optimal / 100 < one.optimal.high
    assert problems.copied == pytest.approx(69.4, abs=0.05)
    # Blind guessing solves more than the best published model does.
    best = max(one.optimal.value for one in lines)
    assert problems.guessed["random_maximal"] == pytest.approx(0.444, abs=5e-4)
    assert problems.guessed["random_maximal"] > best


@pytest.fixture
def problem_file(tmp_path) -> ProblemFile:
    rows = [
        row_to_json(new_row(f"test-blog-{i}", "test", "blog", problem, False))
        for i, problem in enumerate(tier_problems("blog", 12))
    ]
    path = tmp_path / "test.jsonl"
    write_jsonl(path, rows)
    return ProblemFile(str(path))


def _answers(problems, give) -> list[dict]:
    return [
        {"id": f"test-blog-{i}", "completion": answer(give(problem), "so")}
        for i, problem in enumerate(problems)
    ]


def test_a_model_that_copies_is_paid_what_copying_pays_and_one_that_solves_is_optimal(
    problem_file,
):
    problems = tier_problems("blog", 12)
    found = asked(problem_file)
    copying = line("copies", found, _answers(problems, lambda p: p.events), "id")
    assert copying.reward == pytest.approx(found.copied)
    assert copying.statuses == {"overlaps": 12}
    assert (copying.score, copying.optimal.value) == (0.0, 0.0)
    solving = line("solves", found, _answers(problems, optimal_schedule), "id")
    assert (solving.score, solving.optimal.value) == (1.0, 1.0)
    assert solving.statuses == {"valid": 12}
    assert found.guessed == {p: by_k[1] for p, by_k in floor(problems, (1,)).items()}


def test_a_valid_answer_below_the_optimum_is_not_counted_as_optimal(problem_file):
    problems = tier_problems("blog", 12)
    found = asked(problem_file)
    worse = _answers(problems, lambda p: optimal_schedule(p)[:-1])
    valid = [i for i, row in enumerate(worse) if row["completion"].count("<event>") > 1]
    one = line("worse", found, [worse[i] for i in valid], "id")
    assert len(valid) > 3
    assert one.statuses == {"valid": len(valid)}
    assert one.optimal.value == 0
    assert 0 < one.score < 1


def test_several_answers_to_a_problem_are_shown_per_100_answers(problem_file):
    problems = tier_problems("blog", 12)
    samples = 3 * _answers(problems, optimal_schedule) + _answers(problems, lambda p: ())
    found = asked(problem_file)
    table, hidden = sheets("run", found, [line("some", found, samples, "id")])
    assert table.columns == [
        *("model", "format", "<2", "non-existing", "unsorted", "overlap", "valid", "score"),
    ]
    assert table.rows == [["some", "25", "0", "0", "0", "0", "75", "0.7500"]]
    assert hidden.rows[0][1].startswith("75.0 [")
    assert "12 problems, 48 answers a model" in table.notes[0]


# --- the recipe ------------------------------------------------------------------------------


def test_only_what_differs_is_listed_each_with_both_values():
    published, tiny = load_recipe(PUBLISHED), load_recipe(TINY)
    assert differences(published, published) == []
    found = {key: (there, here) for key, there, here in differences(published, tiny)}
    assert found["model"] == ("Qwen/Qwen2.5-Coder-7B-Instruct", "pipeline/embedded")
    assert found["bits"] == (4, None)
    assert found["lora.r"] == (32, None)
    assert found["data.tiers.blog.grid"] == (None, 15)
    # What makes it that experiment is the same.
    same = {"reward.shape", "grpo.beta", "grpo.num_train_epochs", "grpo.num_generations"}
    assert not same & set(found)
    assert not [key for key in found if key.startswith(("arms.", "reward."))]


def test_every_departure_of_the_small_recipe_stands_in_it_with_a_reason():
    """On its line, or on the line above."""
    lines = TINY.read_text().splitlines()
    for key, *_ in differences(load_recipe(PUBLISHED), load_recipe(TINY)):
        # `grid` takes the place of `source`, and `lora: null` that of its keys.
        name = "lora" if key.startswith("lora.") else key.rpartition(".")[2]
        name = {"source": "grid"}.get(name, name)
        (at,) = [i for i, text in enumerate(lines) if f"{name}: " in text.partition("#")[0]]
        assert "#" in lines[at] + lines[at - 1], key


def test_settings_as_published_are_said_to_be():
    (note,) = departures(load_recipe(PUBLISHED)).notes
    assert note == "None: every setting is as published."


@pytest.fixture
def files(tmp_path) -> Path:
    folder = tmp_path / "files"
    row = blog.row_of(tier_problems("blog", 1)[0])
    for split in ("train", "test"):
        write_jsonl(folder / f"{split}.jsonl", [{"index": 0, **row}])
    return folder


def test_the_recipe_of_the_run_takes_the_published_data_from_the_folder_given(tmp_path, files):
    out = tmp_path / "blog" / "recipe.yaml"
    begin(load_recipe(PUBLISHED), files, out)
    written = load_recipe(out)
    assert written.name == "blog"
    assert [key for key, *_ in differences(load_recipe(PUBLISHED), written)] == [
        "data.tiers.blog.source"
    ]
    assert written.data.tiers["blog"]["source"] == f"{files}/{{split}}.jsonl"


def test_a_recipe_that_it_wrote_is_not_written_over_by_one_that_extends_itself(tmp_path):
    out = tmp_path / "blog" / "recipe.yaml"
    begin(load_recipe(TINY), None, out)
    written = out.read_text()
    with pytest.raises(UserError, match=r"recipe\.yaml is what `make blog` writes from another"):
        begin(load_recipe(out), None, tmp_path / "blog" / ".." / "blog" / "recipe.yaml")
    assert out.read_text() == written


def test_the_small_recipe_draws_its_problems_with_or_without_published_files(tmp_path, files):
    for given in (None, files):
        out = tmp_path / "blog" / "recipe.yaml"
        begin(load_recipe(TINY), given, out)
        assert differences(load_recipe(TINY), load_recipe(out)) == []


def test_published_data_that_cannot_be_had_is_said_with_the_way_out(tmp_path):
    with pytest.raises(UserError, match=r"BLOG=folder names one that holds the published train"):
        begin(load_recipe(PUBLISHED), None, tmp_path / "blog" / "recipe.yaml")
    with pytest.raises(UserError, match=r"train.jsonl does not exist; BLOG=folder names one"):
        begin(load_recipe(PUBLISHED), tmp_path, tmp_path / "blog" / "recipe.yaml")
    assert not (tmp_path / "blog").exists()


# --- the stage -------------------------------------------------------------------------------


def test_the_tables_of_a_run_have_a_manifest_and_are_made_anew_when_an_answer_changes(
    tmp_path, monkeypatch, capsys
):
    world = World(tmp_path, monkeypatch)
    recipe = world.recipe({"grpo": {"trainer": "grpo"}})
    with pytest.raises(UserError, match="has no finished samples; `make blog` draws them"):
        run(recipe, None)
    world.train(recipe)
    world.scripts |= {"base": solving(0.2), "grpo": solving(0.9)}
    for arm in ("base", "grpo"):
        sample_arm(recipe, arm, force=False)
    capsys.readouterr()
    run(recipe, None)
    folder = recipe.run.eval / "published"
    assert "the published evaluator, of 100 answers" in capsys.readouterr().out
    assert set(stage_facts(folder)["outputs"]) == {"blog.json", "blog.md"}
    assert not (folder / "begun.json").exists()
    written = (folder / "blog.json").read_text()
    assert [one["answers"] for one in json.loads(written)["this run"]["models"]] == [320, 320]

    run(recipe, None)
    assert capsys.readouterr().out.startswith("blog: up to date")
    world.scripts["grpo"] = solving(0.1)
    sample_arm(recipe, "grpo", force=True)
    run(recipe, None)
    assert (folder / "blog.json").read_text() != written


def test_no_arm_has_the_folder_of_the_tables(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"arms\.published cannot be an arm's name"):
        World(tmp_path, monkeypatch).recipe({"published": {"trainer": "sft"}})
