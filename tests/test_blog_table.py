"""``make blog``: the published table comes out exactly, with what it leaves out."""

import json

import pytest
from problems import tier_problems
from running import BLOG, needs_blog, refusal_of
from scripted import solving

from data.common.files import write_jsonl
from data.policies import floor
from data.prompts import answer
from data.rows import new_row, row_to_json
from data.solver import optimal_schedule
from eval.answers.sampling import sample_arm
from eval.blog import answers_in, judge_as_published, published_sheet, run

#: How many of 100 published answers are optimal, and the average score.
KNOWN = {
    "Qwen2.5-Coder-7B-Instruct": (5, "0.0805"),
    "Qwen2.5-Coder-14B-Instruct": (31, "0.4585"),
    "qwen-scheduler-7b-grpo_2epochs": (37, "0.6226"),
}
PROBLEMS = tier_problems("blog", 12)


@needs_blog
def test_the_published_table_comes_out_exactly_with_what_it_hides():
    table = judge_as_published(BLOG / "test.jsonl", answers_in(BLOG))
    expected = json.loads((BLOG / "expected.json").read_text())
    assert {line["model"] for line in table["models"]} == set(expected) == set(KNOWN)
    for line in table["models"]:
        published, (optimal, shown) = expected[line["model"]], KNOWN[line["model"]]
        assert line["statuses"] == published["counts"]
        assert line["score"] == published["average_score"]
        assert f"{line['score']:.4f}" == shown
        assert line["reward"] == pytest.approx(sum(published["mean_rewards"].values()))
        assert line["optimal"]["value"] == pytest.approx(optimal / 100)
        assert line["optimal"]["low"] < optimal / 100 < line["optimal"]["high"]
    assert table["reward_of_copying"] == pytest.approx(69.4, abs=0.05)
    # Blind guessing solves more than the best published model does.
    guessed = table["guessed"]["random_maximal"]
    assert guessed == pytest.approx(0.444, abs=5e-4)
    assert guessed > max(line["optimal"]["value"] for line in table["models"])


def judged(folder, **schedules):
    """The table of models that answer PROBLEMS, each with lists of schedules: one try or more."""
    rows = [
        row_to_json(new_row(f"test-blog-{i}", "test", "blog", problem, "none"))
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
    copies, solves, worse = table["models"]
    assert copies["reward"] == pytest.approx(table["reward_of_copying"])
    assert (copies["statuses"], copies["score"]) == ({"overlaps": 12}, 0.0)
    assert (solves["statuses"], solves["score"]) == ({"valid": 12}, 1.0)
    assert worse["statuses"] == {"valid": worse["answers"]}
    assert worse["answers"] > 3
    assert 0 < worse["score"] < 1
    assert [line["optimal"]["value"] for line in table["models"]] == [0, 1, 0]
    assert table["guessed"] == {policy: by_k[1] for policy, by_k in floor(PROBLEMS, (1,)).items()}


def test_several_answers_to_a_problem_are_shown_per_100_answers(tmp_path):
    best = [optimal_schedule(problem) for problem in PROBLEMS]
    sheet = published_sheet("run", judged(tmp_path, some=[best, best, best, [()] * 12]))
    [[model, *shares, score, optimal, _]] = sheet.rows
    assert (model, shares, score) == ("some", ["25", "0", "0", "0", "0", "75"], "0.7500")
    assert optimal.startswith("75.0 [")
    assert "12 problems, 48 answers" in sheet.notes[0]


def test_problems_that_all_break_the_rules_are_refused_in_a_sentence(tmp_path):
    late = {"index": 0, "events": [["Drill", "23:30", "24:59"]], "priority_events": []}
    write_jsonl(tmp_path / "test.jsonl", [{**late, "optimal_score": 89}])
    write_jsonl(tmp_path / "completions-m.jsonl", [{"index": 0, "completion": "none"}])
    refusal_of(
        lambda: judge_as_published(tmp_path / "test.jsonl", answers_in(tmp_path)),
        "test.jsonl holds no problem that keeps the rules",
    )


def test_the_tables_of_a_run_are_made_again_when_an_answer_changes(world, tmp_path, capsys):
    recipe = world.recipe({})
    refusal_of(lambda: run(recipe.run, None), "samples", "`make blog`")
    world.scripts["base"] = solving(0.2)
    sample_arm(recipe, "base", force=False)
    refusal_of(lambda: run(recipe.run, tmp_path), f"{tmp_path}", "completions-<model>.jsonl")
    run(recipe.run, None)
    path = recipe.run.eval / "published" / "blog.json"
    written = path.read_text()
    assert [line["answers"] for line in json.loads(written)["this run"]["models"]] == [320]
    capsys.readouterr()
    run(recipe.run, None)
    assert "up to date" in capsys.readouterr().out
    world.scripts["base"] = solving(0.1)
    sample_arm(recipe, "base", force=True)
    run(recipe.run, None)
    assert path.read_text() != written
