"""Judging anyone's completions: both layouts, both judges, and what bad input says."""

import json
import random
import sys
import time
from pathlib import Path

import pytest
from conftest import day

from data.common.errors import UserError
from data.common.files import read_jsonl, write_jsonl
from data.prompts import answer, schedule_xml
from data.published import read_published
from data.run import VERDICTS as VERDICTS_FILE
from data.solver import prove
from data.tiers import TIERS
from eval import score
from eval.answers.files import answered
from eval.answers.judge import score_rows, score_rows_as_published
from rewards import verify
from rewards.verify import DisagreementError

BLOG = Path(__file__).parents[1].parent / "shared" / "blog"

ART, BAND, CHESS = (
    ["Art", "09:00", "10:00"],
    ["Band", "09:30", "11:00"],
    ["Chess", "11:00", "11:30"],
)
ROW = {
    "index": 0,
    "events": [ART, BAND, CHESS],
    "priority_events": ["Chess"],
    "optimal_score": 150,
}
LATE = {
    "index": 1,
    "events": [ART, ["Drill", "23:30", "24:59"]],
    "priority_events": [],
    "optimal_score": 149,
}
BASE_RULES = {"rule": "not_empty"}, {"rule": "chronological"}, {"rule": "no_overlap"}
OURS = {
    "id": "test-0",
    "split": "test",
    "tier": "blog",
    "problem": {
        "events": ROW["events"], "priorities": ["Chess"], "rules": list(BASE_RULES), "optimum": 150,
    },
    "optimum": 150,
    "gold": "…",
    "prompt": "…",
}  # fmt: skip


def xml(*events) -> str:
    body = "".join(
        f"<event><name>{n}</name><start>{s}</start><end>{e}</end></event>" for n, s, e in events
    )
    return f"<schedule>{body}</schedule>"


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command on problems and completions; returns the verdicts and what it printed."""

    def run(problems, completions, *options):
        out = tmp_path / "v.jsonl"
        files = write(tmp_path / "p.jsonl", *problems), write(tmp_path / "c.jsonl", *completions)
        arguments = ["--problems", str(files[0]), "--completions", str(files[1]), "--out", str(out)]
        monkeypatch.setattr(sys, "argv", ["eval.score", *arguments, *options])
        score.main()
        return [row for _, row in read_jsonl(out)], capsys.readouterr().out

    return run


ANSWERS = [xml(BAND, CHESS), xml(ART), xml(ART, BAND), "no idea"]
VERDICTS = [
    {"status": "optimal", "violations": [], "objective": 150, "optimum": 150, "ratio": 1.0},
    {"status": "feasible", "violations": [], "objective": 60, "optimum": 150, "ratio": 0.4},
    {"status": "infeasible", "violations": ["overlap: Art / Band"], "objective": 0, "optimum": 150,
     "ratio": 0.0},
    {"status": "unparsable", "violations": ["no_schedule"], "objective": 0, "optimum": 150,
     "ratio": 0.0},
]  # fmt: skip


def test_published_completions_get_one_verdict_each_in_order(run):
    samples = [{"index": 0, "completion": text} for text in ANSWERS]
    verdicts, printed = run([ROW], samples)
    assert verdicts == [{"index": 0, **verdict} for verdict in VERDICTS]
    assert list(verdicts[0]) == ["index", *VERDICTS[0]]
    assert "mean ratio" in printed
    assert "0.3500" in printed


def test_our_completions_keep_id_arm_and_sample(run):
    samples = [
        {"id": "test-0", "arm": "base", "sample": i, "completion": text, "tokens": 9}
        for i, text in enumerate(ANSWERS)
    ]
    verdicts, printed = run([OURS], samples)
    assert verdicts == [
        {"id": "test-0", "arm": "base", "sample": i, **v} for i, v in enumerate(VERDICTS)
    ]
    assert "base" in printed


def test_each_arm_has_its_column(run):
    samples = [
        {"id": "test-0", "arm": arm, "sample": 0, "completion": text}
        for arm, text in (("base", xml(ART)), ("[/grpo]", xml(BAND, CHESS)))
    ]
    _, printed = run([OURS], samples)
    assert "[/grpo]" in printed  # a name, not markup of the table
    mean = next(line for line in printed.splitlines() if "mean ratio" in line)
    assert "0.4000" in mean
    assert "1.0000" in mean


@pytest.mark.parametrize(("problem", "key"), [(ROW, {"index": 0}), (OURS, {"id": "test-0"})])
def test_the_published_judge_takes_both_layouts(run, problem, key):
    texts = [xml(BAND, CHESS), xml(ART, BAND), xml(ART)]
    verdicts, printed = run(
        [problem], [{**key, "completion": text} for text in texts], "--judge", "blog"
    )
    assert verdicts == [
        {**key, "status": "valid", "score": 1.0},
        {**key, "status": "overlaps", "score": 0.0},
        {**key, "status": "fewer_than_2_events", "score": 0.0},
    ]
    assert "mean score" in printed


def test_completions_of_an_unsound_row_are_skipped_and_counted(run):
    samples = [{"index": i, "completion": xml(ART)} for i in (1, 0, 1)]
    verdicts, printed = run([ROW, LATE], samples)
    assert [verdict["index"] for verdict in verdicts] == [0]
    assert "p.jsonl:2: '24:59' is not a time" in printed
    assert "2 completions of problems left out are skipped; --judge blog judges them" in printed


def test_the_published_judge_judges_an_unsound_row_as_it_stands(run):
    samples = [{"index": 1, "completion": xml(*LATE["events"])}]
    verdicts, _ = run([ROW, LATE], samples, "--judge", "blog")
    assert verdicts == [{"index": 1, "status": "valid", "score": 1.0}]


def test_completions_of_unsound_rows_alone_are_an_error(run):
    with pytest.raises(UserError, match="left out"):
        run([ROW, LATE], [{"index": 1, "completion": xml(ART)}])


GOOD = {"index": 0, "completion": "x"}


@pytest.mark.parametrize(
    ("problems", "completions", "sentence"),
    [
        ([], [GOOD], r"p\.jsonl holds no problem"),
        ([ROW], [], r"c\.jsonl holds no completion"),
        ([ROW, ROW], [GOOD], r"p\.jsonl:2 has index 0 again, first at \S*p\.jsonl:1$"),
        ([{**ROW, "index": "0"}], [GOOD], r'p\.jsonl:1: a problem needs "index", a whole number'),
        ([{"events": []}], [GOOD], r'p\.jsonl:1: a problem needs "index".*missing'),
        ([{"index": 0}], [GOOD], r'p\.jsonl:1: a row of the published layout needs "events"'),
        ([{**OURS, "id": 3}], [GOOD], r'p\.jsonl:1: a problem needs "id", a text, not 3'),
        ([OURS, ROW], [GOOD], r'p\.jsonl:2: a problem needs "id", a text, which is missing'),
        ([{**OURS, "problem": []}], [{"id": "test-0", "completion": ""}], r"p\.jsonl:1: a problem"),
        ([OURS], [GOOD], r'c\.jsonl:1: a completion of \S+ needs "id", a text, which is missing'),
        ([ROW], [GOOD, {"completion": "x"}], r'c\.jsonl:2: .* needs "index".*missing'),
        ([ROW], [{"index": True, "completion": "x"}], r"c\.jsonl:1: .* not True"),
        ([ROW], [{"index": 5, "completion": "x"}], r"c\.jsonl:1: \S+ has no problem of index 5"),
        ([ROW], [{"index": 0}], r'c\.jsonl:1: .* needs "completion", a text'),
        ([ROW], [{"index": 0, "completion": None}], r'c\.jsonl:1: .* needs "completion", a text'),
    ],
)
def test_bad_input_is_one_sentence_that_names_the_line(run, problems, completions, sentence):
    with pytest.raises(UserError, match=sentence):
        run(problems, completions)


def test_a_wrong_optimum_in_our_own_layout_is_an_error(run):
    wrong = {**OURS, "problem": {**OURS["problem"], "optimum": 60}}
    with pytest.raises(UserError, match=r"p\.jsonl:1: its optimum is 150, not 60 as it says"):
        run([wrong], [{"id": "test-0", "completion": xml(BAND, CHESS)}])


def test_an_output_that_would_replace_an_input_is_refused(run, tmp_path):
    with pytest.raises(UserError, match="would replace an input"):
        run([ROW], [GOOD], "--out", str(tmp_path / "c.jsonl"))
    with pytest.raises(UserError, match="is a folder"):
        run([ROW], [GOOD], "--out", str(tmp_path))


def test_a_disagreement_with_cp_sat_stops_the_judging(monkeypatch):
    problem = TIERS["blog"].sample(random.Random(0))
    problem = problem.proven(problem.objective(prove(problem)))
    monkeypatch.setattr(verify, "admits", lambda problem, schedule: False)
    sample = {"id": "a", "completion": schedule_xml(problem.events[:1])}
    with pytest.raises(DisagreementError):
        list(score_rows({"a": problem}, [sample]))


def test_verdicts_come_as_samples_do_and_each_schedule_is_confirmed_once(monkeypatch):
    problem = TIERS["dense"].sample(random.Random(1))
    problem = problem.proven(problem.objective(prove(problem)))
    asked = []
    admits = verify.admits
    monkeypatch.setattr(verify, "admits", lambda p, s: asked.append(s) or admits(p, s))
    best = prove(problem)
    texts = [answer(best, f"thought {i}") for i in range(1000)]
    samples = ({"id": "a", "sample": i, "completion": text} for i, text in enumerate(texts))
    started = time.process_time()
    verdicts = score_rows({"a": problem}, samples)
    assert next(verdicts)["sample"] == 0  # a stream: nothing waits for the last sample
    rest = list(verdicts)
    assert time.process_time() - started < 1
    assert asked == [best]
    assert [row["sample"] for row in rest] == list(range(1, 1000))
    assert {row["status"] for row in rest} == {"optimal"}


# --- what make eval reads of its own ---------------------------------------------------------


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
    verdicts = score_rows(dict.fromkeys(("p0", "p1"), problem), rows)
    write_jsonl(tmp_path / VERDICTS_FILE, verdicts)
    return tmp_path


def test_every_answer_comes_with_the_verdict_on_it(eval_folder):
    rows = list(answered(eval_folder / "samples.jsonl", {"p0", "p1"}))
    assert [(row["id"], row["sample"]) for row in rows] == [
        (name, i) for name in ("p0", "p1") for i in range(4)
    ]
    for row in rows:
        assert row["status"] == verify.verify(day(), row["completion"]).status
        assert row["tokens"] == 9


def spoilt(content, number, **changes):
    """The text of a JSONL file with a row that has other values, or lacks those that are None."""
    lines = content.splitlines(keepends=True)
    row = {**json.loads(lines[number]), **changes}
    row = {key: value for key, value in row.items() if value is not None}
    return "".join([*lines[:number], json.dumps(row) + "\n", *lines[number + 1 :]])


@pytest.mark.parametrize(
    ("name", "changed", "says"),
    [
        ("samples", lambda t: spoilt(t, 3, completion=7), 'samples.jsonl:4: "completion" must be'),
        ("samples", lambda t: spoilt(t, 3, id="p9"), "samples.jsonl:4: \"id\" is 'p9', no problem"),
        ("samples", lambda t: spoilt(t, 3, id=[1]), 'samples.jsonl:4: "id" is [1], no problem'),
        (
            "samples",
            lambda t: spoilt(t, 3, tokens=None),
            'samples.jsonl:4: "tokens" must be a whole',
        ),
        (
            "samples",
            lambda t: spoilt(t, 3, finish_reason=None),
            ':4: "finish_reason" must be a text',
        ),
        ("samples", lambda t: t[:-9], "samples.jsonl:"),
        ("samples", lambda t: t[: t.index('{"id": "p1"')], "verdicts.jsonl is not of the answers"),
        ("verdicts", lambda t: spoilt(t, 3, ratio=2), 'verdicts.jsonl:4: "ratio" must be a number'),
        ("verdicts", lambda t: spoilt(t, 3, status=None), 'verdicts.jsonl:4: "status" must be one'),
        ("verdicts", lambda t: "", "verdicts.jsonl is not of the answers beside it; delete it"),
        ("both", lambda t: t[: t.index('{"id": "p1"')], "samples.jsonl lacks problems; delete it"),
    ],
)
def test_spoilt_answers_and_verdicts_are_one_sentence(name, changed, says, eval_folder):
    samples = eval_folder / "samples.jsonl"
    for path in (samples, eval_folder / VERDICTS_FILE):
        if name in (path.stem, "both"):
            path.write_text(changed(path.read_text()))
    with pytest.raises(UserError) as raised:
        list(answered(samples, {"p0", "p1"}))
    assert says in str(raised.value)
    assert "`make eval`" in str(raised.value)


@pytest.mark.skipif(not BLOG.is_dir(), reason="the published data is not beside the project")
@pytest.mark.parametrize(
    ("model", "valid", "optimal"),
    [
        ("Qwen2.5-Coder-7B-Instruct", 9, 5),
        ("Qwen2.5-Coder-14B-Instruct", 48, 31),
        ("qwen-scheduler-7b-grpo_2epochs", 67, 37),
    ],
)
def test_the_published_completions_are_judged_by_both(model, valid, optimal):
    sound, _ = read_published(str(BLOG / "test.jsonl"))
    problems = {row["index"]: problem for _, problem, row in sound}
    rows = {row["index"]: row for _, _, row in sound}
    samples = [sample for _, sample in read_jsonl(BLOG / f"completions-{model}.jsonl")]
    ours = list(score_rows(problems, samples, "index"))
    blog = list(score_rows_as_published(rows, samples))
    assert sum(row["status"] == "valid" for row in blog) == valid
    assert sum(row["status"] == "optimal" for row in ours) == optimal
    # What they call valid is feasible for us, at the same ratio.
    assert all(o["ratio"] == b["score"] for o, b in zip(ours, blog, strict=True) if b["score"])
