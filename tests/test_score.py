"""Judging anyone's completions: both layouts, both judges, and what bad input says."""

import json
import math
import sys

import pytest
from answers import xml
from problems import day
from running import BLOG, CASES, ROOT, needs_blog, needs_cases, python, refusal_of, rows_in

from data.common.files import read_jsonl, write_jsonl
from data.prompts import schedule_xml
from data.published import read_published
from data.run import VERDICTS
from eval import score
from eval.answers.files import answered
from eval.answers.judge import score_rows, score_rows_as_published
from rewards import verify

ART, BAND = ["Art", "09:00", "10:00"], ["Band", "09:30", "11:00"]
CHESS = ["Chess", "11:00", "11:30"]
ROW = {"index": 0, "events": [ART, BAND, CHESS], "priority_events": ["Chess"], "optimal_score": 150}
LATE = {
    "index": 1,
    "events": [ART, ["Drill", "23:30", "24:59"]],
    "priority_events": [],
    "optimal_score": 149,
}
RULES = [{"rule": "not_empty"}, {"rule": "chronological"}, {"rule": "no_overlap"}]
PROBLEM = {"events": ROW["events"], "priorities": ["Chess"], "rules": RULES, "optimum": 150}
OURS = {"id": "test-0", "tier": "blog", "problem": PROBLEM}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command on problems and completions; returns the verdicts and the printed text."""

    def run(problems, completions, *options):
        out, files = tmp_path / "v.jsonl", (tmp_path / "p.jsonl", tmp_path / "c.jsonl")
        for path, rows in zip(files, (problems, completions), strict=True):
            write_jsonl(path, rows)
        arguments = ["--problems", str(files[0]), "--completions", str(files[1]), "--out", str(out)]
        monkeypatch.setattr(sys, "argv", ["eval.score", *arguments, *options])
        score.main()
        return rows_in(out), capsys.readouterr().out

    return run


def verdict(status, violations=(), objective=0):
    ratio = objective / 150
    return {"status": status, "violations": list(violations), "objective": objective,
            "optimum": 150, "ratio": ratio}  # fmt: skip


ANSWERS = {
    xml(BAND, CHESS): verdict("optimal", objective=150),
    xml(ART): verdict("feasible", objective=60),
    xml(ART, BAND): verdict("infeasible", ["overlap: Art / Band"]),
    "no idea": verdict("unparsable", ["no_schedule"]),
}


@pytest.mark.parametrize(
    ("problem", "name"), [(ROW, {"index": 0}), (OURS, {"id": "test-0", "arm": "[/grpo]"})]
)
def test_completions_of_both_layouts_get_a_verdict_each_from_either_judge(run, problem, name):
    samples = [{**name, "sample": i, "completion": text} for i, text in enumerate(ANSWERS)]
    verdicts, printed = run([problem], samples)
    assert verdicts == [
        {**name, "sample": i, **verdict} for i, verdict in enumerate(ANSWERS.values())
    ]
    assert "0.3500" in printed  # the mean ratio
    assert name.get("arm", "completions") in printed  # a name, not markup of the table
    verdicts, _ = run([problem], samples, "--judge", "blog")
    assert [(row["status"], row["score"]) for row in verdicts] == [
        ("valid", 1.0), ("fewer_than_2_events", 0.0), ("overlaps", 0.0), ("format_error", 0.0),
    ]  # fmt: skip


def test_cut_off_answers_are_none_and_malformed_ones_are_read_leniently_only(run):
    gold = xml(BAND, CHESS)
    samples = [
        {"completion": gold, "finish_reason": "length"},
        {"completion": gold, "stop_reason": "max_tokens"},
        {"completion": f"{gold} hmm", "reasoning_opened_by_template": True},
        {"completion": gold, "reasoning_opened_by_template": True},
        {"completion": gold.replace("Band", "&#66;and\u00a0").replace("09:30", "9:30")},
        {"completion": gold.replace("<event>", "<event id='1'>"), "finish_reason": "stop"},
    ]
    for options, wanted in ((), []), (("--lenient",), ["optimal"] * 3):
        verdicts, _ = run([ROW], [{"index": 0, **sample} for sample in samples], *options)
        statuses = [row["status"] for row in verdicts]
        assert statuses == ["unparsable"] * (6 - len(wanted)) + wanted
    assert verdicts[0]["violations"] == ["cut_off"]


@needs_cases
def test_answers_that_people_met_are_judged_as_they_should_be(run):
    problems, answers = (rows_in(CASES / f"answers{part}.jsonl") for part in ("-problem", ""))
    for mode, options in (("strict", ()), ("lenient", ("--lenient",))):
        verdicts, _ = run(problems, answers, *options)
        judged = [
            (row["kind"], found["status"]) for row, found in zip(answers, verdicts, strict=True)
        ]
        assert judged == [(row["kind"], row[mode]) for row in answers]


def test_rows_without_an_index_count_from_0_in_each_arm_and_messages_are_answers(run):
    rows = [{key: value for key, value in ROW.items() if key != "index"}] * 2
    turns = [
        {"role": "user", "content": xml(ART)},
        {"role": "assistant", "content": [{"type": "text", "text": xml(BAND, CHESS)}]},
    ]
    samples = [{"arm": arm, "completion": turns} for arm in "aabb"]
    verdicts, _ = run(rows, samples)
    assert [row["index"] for row in verdicts] == [0, 1, 0, 1]
    assert {row["status"] for row in verdicts} == {"optimal"}
    three = [{"completion": turns}] * 3
    refusal_of(lambda: run(rows, three), "c.jsonl:3: ", "no problem of index 2", RIGHT)


def test_lines_of_openais_api_and_its_batches_are_read_as_they_are(run):
    def message(*events):
        return {"message": {"role": "assistant", "content": xml(*events)}}

    best, cut = message(BAND, CHESS), {**message(ART), "finish_reason": "length"}
    body = {"object": "chat.completion", "choices": [best, cut, {"text": xml(CHESS)}]}
    lines = [
        {"id": "test-0", **body},
        {"id": "batch_1", "custom_id": "test-0", "response": {"status_code": 200, "body": body}},
        {"id": "test-0", "messages": [{"role": "user", "content": "Plan."}, best["message"]]},
    ]
    rows, _ = run([OURS], lines)
    each = ["optimal", "unparsable", "feasible"]
    assert [row["status"] for row in rows] == [*each, *each, "optimal"]


def test_a_line_of_the_api_is_one_problem_in_the_published_layout_whatever_the_order(run):
    def body(*texts):
        return {"choices": [{"message": {"role": "assistant", "content": text}} for text in texts]}

    problems = [ROW, {**ROW, "index": 1, "events": [ART, CHESS], "optimal_score": 120}]
    other, both = body(xml(ART, CHESS)), body(xml(BAND, CHESS), xml(ART))
    batch = [
        {"custom_id": "1", "response": {"body": other}},
        {"custom_id": "0", "response": {"body": both}},
    ]
    judged = {}
    for name, lines in (("batch", batch), ("responses", [both, other])):
        verdicts, _ = run(problems, lines)
        judged[name] = [(row["index"], row["status"]) for row in verdicts]
    assert judged["batch"] == [(1, "optimal"), (0, "optimal"), (0, "feasible")]
    assert judged["responses"] == [(0, "optimal"), (0, "feasible"), (1, "optimal")]


def test_pass_at_k_stands_beside_guessing_by_tier_and_says_what_is_lacking_or_doubled(run):
    problems = [{**OURS, "id": f"p{i}", "tier": "easy" if i < 3 else "hard"} for i in range(4)]
    name = "a-model-by-the-name-of/" + "x" * 90
    samples = [
        {"id": f"p{i}", "arm": name, "sample": k, "completion": xml(BAND, CHESS) if k else "?"}
        for i in range(2)
        for k in range(4)
    ]
    verdicts, printed = run(problems, [*samples, samples[-1]])
    assert len(verdicts) == 8
    assert "1 lines repeat" in printed
    for said in ("easy: pass@k", " 75.0 [", "100.0 [", "random maximal", "1 of 3 problems",
                 "hard: no problem", "2 problems x 4 samples", "x" * 20):  # fmt: skip
        assert said in printed
    assert max(map(len, printed.split("Floors")[0].splitlines())) <= 100


def test_completions_of_an_unsound_row_are_skipped_counted_and_left_to_the_published_judge(run):
    samples = [{"index": i, "completion": xml(*LATE["events"])} for i in (1, 0, 1)]
    verdicts, printed = run([ROW, LATE], samples)
    assert [row["index"] for row in verdicts] == [0]
    assert "p.jsonl:2: '24:59'" in printed
    assert "2 completions" in printed
    verdicts, _ = run([ROW, LATE], samples[:1], "--judge", "blog")
    assert verdicts == [{"index": 1, "status": "valid", "score": 1.0}]
    refusal_of(lambda: run([ROW, LATE], samples[:1]), "p.jsonl")


def test_judging_needs_no_torch():
    files = ["--problems", "problems.jsonl", "--completions", "completions.jsonl"]
    code = "import sys; from eval.score import main; main(); assert 'torch' not in sys.modules"
    done = python("-c", code, *files, cwd=ROOT / "docs" / "example")
    assert done.returncode == 0, done.stderr
    assert "mean ratio" in done.stdout


GOOD = {"index": 0, "completion": "x"}
#: The way out: what a right line is like.
RIGHT = '; a right line: {"index": 0, "com'


@pytest.mark.parametrize(
    ("problems", "completions", "named"),
    [
        ([], [GOOD], ["p.jsonl holds no problem"]),
        ([ROW], [], ["c.jsonl holds no completion"]),
        ([ROW, ROW], [GOOD], ["p.jsonl:2 has index 0 again", "p.jsonl:1"]),
        ([{**ROW, "index": "0"}], [GOOD], ["p.jsonl:1: ", '"index", a whole number']),
        ([{**OURS, "id": 3}], [GOOD], ["p.jsonl:1: ", '"id", a text, not 3']),
        ([{**OURS, "problem": []}], [{"id": "test-0", "completion": ""}], ["p.jsonl:1: "]),
        (
            [{**OURS, "problem": {**PROBLEM, "optimum": 60}}],
            [{"id": "test-0", "completion": ""}],
            ["p.jsonl:1: ", " 150, not 60"],
        ),
        ([OURS], [GOOD], ["c.jsonl:1: ", '"id"']),
        ([ROW], [{"index": True, "completion": "x"}], ["c.jsonl:1: ", "not true"]),
        ([ROW], [{"index": 5, "completion": "x"}], ["c.jsonl:1: ", "index 5"]),
        ([ROW], [{"index": 0, "completion": None}], ["c.jsonl:1: ", '"completion", a text']),
        ([ROW], [{"index": 0, "output": "x"}], ["c.jsonl:1: ", RIGHT]),
        ([OURS], [{"id": "test-0", "choices": []}], ["c.jsonl:1: ", '"completion", a text']),
        ([OURS], [{"custom_id": "test-0", "response": None}], ["c.jsonl:1: ", '"completion"']),
        ([ROW], [{"custom_id": "first", "response": None}], ["c.jsonl:1: ", "not 'first'"]),
        ([ROW], [["x"]], ["c.jsonl:1 must be a JSON object", RIGHT]),
    ],
)
def test_bad_input_is_one_sentence_that_names_the_line(run, problems, completions, named):
    refusal_of(lambda: run(problems, completions), *named)


def test_an_output_that_would_replace_an_input_is_refused(run, tmp_path):
    out = tmp_path / "c.jsonl"
    refusal_of(lambda: run([ROW], [GOOD], "--out", str(out)), f"OUT= (--out) {out} ")


def test_the_published_judge_has_no_lenient_reading(run):
    refusal_of(lambda: run([ROW], [GOOD], "--judge", "blog", "--lenient"), "leave --lenient out")


# --- make eval reads its own files ----------------------------------------------------------


@pytest.fixture
def eval_folder(tmp_path):
    """Four answers to each of two problems, with the verdicts on them."""
    problem = day()
    rows = [
        {"id": name, "arm": "base", "sample": i,
         "completion": schedule_xml(problem.events[i : i + 1]), "finish_reason": "stop",
         "tokens": 9}
        for name in ("p0", "p1")
        for i in range(4)
    ]  # fmt: skip
    write_jsonl(tmp_path / "samples.jsonl", rows)
    write_jsonl(tmp_path / VERDICTS, score_rows(dict.fromkeys(("p0", "p1"), problem), rows))
    return tmp_path


def test_every_answer_comes_with_the_verdict_on_it(eval_folder):
    rows = list(answered(eval_folder / "samples.jsonl", {"p0", "p1"}))
    assert [(row["id"], row["sample"]) for row in rows] == [
        (name, i) for name in ("p0", "p1") for i in range(4)
    ]
    assert all(row["status"] == verify.verify(day(), row["completion"]).status for row in rows)


def fourth(**changes):
    """Spoils the fourth line of a file: other values, or none where they are None."""

    def spoil(content):
        lines = content.splitlines(keepends=True)
        row = {**json.loads(lines[3]), **changes}
        lines[3] = json.dumps({k: v for k, v in row.items() if v is not None}) + "\n"
        return "".join(lines)

    return spoil


def without_p1(content):
    return content[: content.index('{"id": "p1"')]


@pytest.mark.parametrize(
    ("names", "spoil", "says"),
    [
        *(
            (["samples"], fourth(**{key: value}), f'samples.jsonl:4: "{key}" {says}')
            for key, value, says in (
                ("id", "p9", "is 'p9'"), ("id", ["a"], "is"), ("sample", 9, "is 9"),
                ("completion", [1], "must be"),
                ("completion", 7, "must be"), ("completion", None, "must be"),
                ("tokens", math.nan, "must be"), ("tokens", None, "must be"),
                ("finish_reason", None, "must be"), ("finish_reason", ["x"], "must be"),
            )
        ),
        *(
            (["verdicts"], fourth(**{key: value}), f'verdicts.jsonl:4: "{key}" must be')
            for key, value in (
                ("ratio", 2), ("ratio", math.nan), ("ratio", "1"), ("status", "splendid"),
                ("violations", "overlap"), ("finish_reason", ["x"]),
            )
        ),
        (["verdicts"], fourth(id="p9"), "verdicts.jsonl:4: \"id\" is 'p9'"),
        (["verdicts"], fourth(sample=9), 'verdicts.jsonl:4: "sample" is 9'),
        (["samples"], lambda content: "7\n" + content, "samples.jsonl:1"),
        (["verdicts"], lambda content: "7\n" + content, "verdicts.jsonl:1"),
        (["samples"], lambda content: content[:-9], "samples.jsonl:"),
        (["verdicts"], lambda content: content[:-9], "verdicts.jsonl:"),
        (["samples"], without_p1, "verdicts.jsonl"),
        (["verdicts"], lambda content: "", "verdicts.jsonl"),
        (["samples", "verdicts"], without_p1, "samples.jsonl lacks problems"),
    ],
)  # fmt: skip
def test_spoilt_answers_and_verdicts_are_one_sentence(names, spoil, says, eval_folder):
    for name in names:
        path = eval_folder / f"{name}.jsonl"
        path.write_text(spoil(path.read_text()))
    read = answered(eval_folder / "samples.jsonl", {"p0", "p1"})
    refusal_of(lambda: list(read), says, "delete ", "`make eval`")


@needs_blog
def test_what_the_published_judge_calls_valid_is_feasible_here_at_the_same_ratio():
    sound, _ = read_published(str(BLOG / "test.jsonl"))
    problems = {row["index"]: problem for problem, row in sound}
    rows = {row["index"]: row for _, row in sound}
    file = BLOG / "completions-qwen-scheduler-7b-grpo_2epochs.jsonl"
    samples = [sample for _, sample in read_jsonl(file)]
    ours = list(score_rows(problems, samples, "index"))
    blog = list(score_rows_as_published(rows, samples))
    valid = [o["ratio"] == b["score"] for o, b in zip(ours, blog, strict=True) if b["score"]]
    assert valid == [True] * 67
