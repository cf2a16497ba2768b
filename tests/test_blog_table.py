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
from eval.answers.sampling import sample_arm
from eval.blog import (
    PUBLISHED,
    answers_in,
    changed_settings,
    departures,
    judge_as_published,
    published_sheets,
    run,
    write_recipe,
)
from rewards import blog

TINY = PUBLISHED.with_name("blog-tiny.yaml")
#: How many of 100 published answers are optimal, and the average score.
KNOWN = {
    "Qwen2.5-Coder-7B-Instruct": (5, "0.0805"),
    "Qwen2.5-Coder-14B-Instruct": (31, "0.4585"),
    "qwen-scheduler-7b-grpo_2epochs": (37, "0.6226"),
}
PROBLEMS = tier_problems("blog", 12)


# --- the table -----------------------------------------------------------------------------------


@pytest.mark.skipif(not BLOG.is_dir(), reason="the published data is not beside the project")
def test_the_published_table_comes_out_exactly_with_what_it_hides():
    table = judge_as_published(BLOG / "test.jsonl", answers_in(BLOG))
    expected = json.loads((BLOG / "expected.json").read_text())
    assert {line.model for line in table.models} == set(expected) == set(KNOWN)
    for line in table.models:
        published, (optimal, shown) = expected[line.model], KNOWN[line.model]
        assert line.statuses == published["counts"]
        assert line.score == published["average_score"]
        assert f"{line.score:.4f}" == shown
        assert line.reward == pytest.approx(sum(published["mean_rewards"].values()))
        assert line.optimal.value == pytest.approx(optimal / 100)
        assert line.optimal.low < optimal / 100 < line.optimal.high
    assert table.reward_of_copying == pytest.approx(69.4, abs=0.05)
    # Blind guessing solves more than the best published model does.
    assert table.guessed["random_maximal"] == pytest.approx(0.444, abs=5e-4)
    assert table.guessed["random_maximal"] > max(line.optimal.value for line in table.models)


def judged(folder, **schedules):
    """The table of models that answer PROBLEMS, each with lists of schedules: one try or more."""
    rows = [
        row_to_json(new_row(f"test-blog-{i}", "test", "blog", problem, False))
        for i, problem in enumerate(PROBLEMS)
    ]
    write_jsonl(folder / "test.jsonl", rows)
    for model, tries in schedules.items():
        samples = [
            {"id": row["id"], "completion": answer(schedule, "so")}
            for one in tries
            for row, schedule in zip(rows, one, strict=True)
            if schedule is not None
        ]
        write_jsonl(folder / f"completions-{model}.jsonl", samples)
    return judge_as_published(folder / "test.jsonl", answers_in(folder))


def test_copying_is_paid_what_copying_pays_and_only_the_optimum_is_optimal(tmp_path):
    best = [optimal_schedule(problem) for problem in PROBLEMS]
    worse = [schedule[:-1] if len(schedule) > 2 else None for schedule in best]
    table = judged(tmp_path, copies=[[p.events for p in PROBLEMS]], solves=[best], worse=[worse])
    copies, solves, worse = table.models
    assert copies.reward == pytest.approx(table.reward_of_copying)
    assert (copies.statuses, copies.score) == ({"overlaps": 12}, 0.0)
    assert (solves.statuses, solves.score) == ({"valid": 12}, 1.0)
    assert worse.statuses == {"valid": worse.answers}
    assert worse.answers > 3
    assert 0 < worse.score < 1
    assert [line.optimal.value for line in table.models] == [0, 1, 0]
    assert table.guessed == {policy: by_k[1] for policy, by_k in floor(PROBLEMS, (1,)).items()}


def test_several_answers_to_a_problem_are_shown_per_100_answers(tmp_path):
    best = [optimal_schedule(problem) for problem in PROBLEMS]
    table = judged(tmp_path, some=[best, best, best, [()] * 12])
    published, hidden = published_sheets("run", table)
    assert published.columns[1:] == [
        *("format", "<2", "non-existing", "unsorted", "overlap", "valid", "score"),
    ]
    assert published.rows == [["some", "25", "0", "0", "0", "0", "75", "0.7500"]]
    assert hidden.rows[0][1].startswith("75.0 [")
    assert "12 problems, 48 answers" in published.notes[0]


# --- the recipe ----------------------------------------------------------------------------------


def test_only_what_differs_is_listed_each_with_both_values():
    assert changed_settings(load_recipe(PUBLISHED)) == []
    [note] = departures(PUBLISHED, []).notes
    assert note.startswith("None")
    found = {key: (there, here) for key, there, here in changed_settings(load_recipe(TINY))}
    assert found["model"] == ("Qwen/Qwen2.5-Coder-7B-Instruct", "pipeline/embedded")
    assert found["bits"] == (4, None)
    assert found["lora.r"] == (32, None)
    assert found["data.tiers.blog.grid"] == (None, 15)
    # What makes it that experiment is the same.
    assert not {"grpo.beta", "grpo.num_train_epochs", "grpo.num_generations"} & set(found)
    assert not [key for key in found if key.startswith(("arms.", "reward."))]


def test_every_departure_of_the_small_recipe_stands_in_it_with_a_reason():
    """On its line, or on the line above."""
    lines = TINY.read_text().splitlines()
    for key, *_ in changed_settings(load_recipe(TINY)):
        # `grid` takes the place of `source`, and `lora: null` that of its keys.
        name = "lora" if key.startswith("lora.") else key.rpartition(".")[2]
        name = {"source": "grid"}.get(name, name)
        [at] = [i for i, text in enumerate(lines) if f"{name}: " in text.partition("#")[0]]
        assert "#" in lines[at] + lines[at - 1], key


@pytest.fixture
def files(tmp_path) -> Path:
    row = blog.row_of(PROBLEMS[0])
    for split in ("train", "test"):
        write_jsonl(tmp_path / "files" / f"{split}.jsonl", [{"index": 0, **row}])
    return tmp_path / "files"


def test_the_recipe_of_the_run_takes_the_published_data_from_the_folder_given(tmp_path, files):
    out = tmp_path / "blog" / "recipe.yaml"
    write_recipe(load_recipe(PUBLISHED), files, out)
    written = load_recipe(out)
    assert written.name == "blog"
    assert [key for key, *_ in changed_settings(written)] == ["data.tiers.blog.source"]
    assert written.data.tiers["blog"]["source"] == f"{files}/{{split}}.jsonl"


@pytest.mark.parametrize("published", [False, True])
def test_the_small_recipe_draws_its_problems_and_is_not_written_over_by_itself(
    tmp_path, files, published
):
    out = tmp_path / "blog" / "recipe.yaml"
    write_recipe(load_recipe(TINY), files if published else None, out)
    assert changed_settings(load_recipe(out)) == changed_settings(load_recipe(TINY))
    written = out.read_text()
    with pytest.raises(UserError, match=r"recipe\.yaml is what `make blog` writes"):
        write_recipe(load_recipe(out), None, tmp_path / "blog" / ".." / "blog" / "recipe.yaml")
    assert out.read_text() == written


def test_published_data_that_is_not_there_is_said_with_the_way_out(tmp_path):
    for files, said in ((None, "BLOG=folder"), (tmp_path, r"test\.jsonl .* BLOG=folder")):
        with pytest.raises(UserError, match=said):
            write_recipe(load_recipe(PUBLISHED), files, tmp_path / "blog" / "recipe.yaml")
    assert not (tmp_path / "blog").exists()


# --- the stage -----------------------------------------------------------------------------------


def test_the_tables_of_a_run_are_made_again_when_an_answer_changes(tmp_path, monkeypatch, capsys):
    world = World(tmp_path, monkeypatch)
    recipe = world.recipe({"grpo": {"trainer": "grpo"}})
    with pytest.raises(UserError, match="no finished samples; `make blog` draws them"):
        run(recipe, None)
    world.train(recipe)
    world.scripts |= {"base": solving(0.2), "grpo": solving(0.9)}
    for arm in ("base", "grpo"):
        sample_arm(recipe, arm, force=False)
    run(recipe, None)
    folder = recipe.run.eval / "published"
    assert stage_facts(folder)["outputs"] == ["blog.json", "blog.md"]
    written = (folder / "blog.json").read_text()
    assert [one["answers"] for one in json.loads(written)["this run"]["models"]] == [320, 320]
    capsys.readouterr()
    run(recipe, None)
    assert "up to date" in capsys.readouterr().out
    world.scripts["grpo"] = solving(0.1)
    sample_arm(recipe, "grpo", force=True)
    run(recipe, None)
    assert (folder / "blog.json").read_text() != written


def test_no_arm_has_the_folder_of_the_tables(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"arms\.published cannot be an arm's name"):
        World(tmp_path, monkeypatch).recipe({"published": {"trainer": "sft"}})
