"""`make doctor`: which logs are read, and how findings are reported."""

import csv
import importlib
import io
import json
import math
import sys
from functools import partial

import pytest
from running import CASES, needs_cases

from data import recipe
from pipeline.health.logs import examine
from pipeline.health.signals import GRPO, SFT
from tests.synthetic import SICK, changed, collapsed, foreign, grpo_log, hacked, sft_log, stuck


def write(path, rows):
    """A log or, by its suffix, a trainer state."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps({"global_step": 5, "log_history": rows}))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def call(monkeypatch, run_command):
    """Runs the command with flags; returns its output, and how it ended."""
    monkeypatch.setenv("COLUMNS", "140")
    return partial(run_command, "pipeline.doctor")


@pytest.fixture
def diagnosed(call):
    """A function that returns the only log of a successful ``--log PATH --json``."""

    def read(path):
        said, code = call("--log", path, "--json")
        assert code == 0
        (log,) = json.loads(said)["logs"]
        log["symptoms"] = [one["symptom"] for one in log["findings"] if one["level"] != "note"]
        return log

    return read


@pytest.fixture
def runs(monkeypatch, tmp_path):
    monkeypatch.setattr(recipe, "RUNS", tmp_path)
    write(tmp_path / "tiny" / "sft" / "log.jsonl", sft_log(1))
    write(tmp_path / "tiny" / "grpo" / "log.jsonl", changed(hacked(23), "kl", lambda row: None))
    write(tmp_path / "tiny" / "late" / "log.jsonl", [])
    return tmp_path


def test_a_run_is_reported_arm_by_arm_with_evidence_and_advice(runs, call):
    said, code = call("--run", "tiny")
    assert code == 0
    text = " ".join(said.split())
    assert "grpo GRPO, 12 rows, steps 5 to 60: 1 stop" in text
    assert "make audit" in text
    assert "sft SFT, 40 rows, steps 5 to 200: nothing found" in text
    assert "kl-slow (needs KL)" in text
    # An overview of several logs stands at the end.
    assert [line.split() for line in said.splitlines()[-3:]] == [
        ["grpo", "hacking", "(50)"],
        ["late", "nothing", "logged", "yet"],
        ["sft", "nothing"],
    ]


def test_json_has_the_same(runs, call):
    logs = {log["arm"]: log for log in json.loads(call("--run", "tiny", "--json")[0])["logs"]}
    assert logs["grpo"]["findings"][0]["symptom"] == "hacking"
    assert (logs["sft"]["kind"], logs["sft"]["findings"]) == (SFT, [])
    assert "overfitting" in logs["sft"]["looked"]
    assert logs["late"]["kind"] is None


def test_a_run_that_is_not_there_names_those_that_are(runs, call, monkeypatch):
    assert "'tiny'" in call("--run", "tinny")[1]
    monkeypatch.setattr(recipe, "RUNS", runs / "tiny")
    assert "no run has a log yet" in call("--run", "tiny")[1]


def test_the_newest_checkpoint_of_another_trainer_is_read(tmp_path, diagnosed):
    write(tmp_path / "checkpoint-9" / "trainer_state.json", grpo_log(1)[:9])
    write(tmp_path / "checkpoint-10" / "trainer_state.json", collapsed(1))
    write(tmp_path / "checkpoint-last" / "trainer_state.json", [])
    log = diagnosed(tmp_path)
    assert log["path"].endswith("checkpoint-10/trainer_state.json")
    assert log["symptoms"] == ["entropy-collapse"]


@pytest.mark.parametrize("name", ["history.jsonl", "log.jsonl", "trainer_state.json"])
def test_a_file_may_be_named_and_hold_numbers_that_are_not_finite(tmp_path, name, diagnosed):
    log = diagnosed(write(tmp_path / "x" / name, SICK["nonfinite"](1)))
    assert log["arm"] == ("history" if name == "history.jsonl" else "x")
    assert log["symptoms"] == ["nonfinite"]


def test_the_first_row_that_can_tells_the_trainer(tmp_path):
    first = {"step": 0, "eval_loss": 0.7}
    assert examine("a", write(tmp_path / "a.jsonl", [first, *grpo_log(1)])).kind == GRPO
    assert examine("b", write(tmp_path / "b.jsonl", [first, *sft_log(1)])).kind == SFT


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"step": 1, "loss": 1}\n{"step": 2, "lo\n', "a.jsonl:2 "),
        ("a.jsonl", '{"step": 1, "loss": 1}\n[3]', "a.jsonl:2 "),
        ("a.jsonl", '{"a": "b"}\n', "SFT or GRPO"),
        ("a.jsonl", '{"loss": 1, "rewards/chosen": 1}\n' * 2000, "SFT or GRPO"),
        ("trainer_state.json", "{", "JSON"),
        ("trainer_state.json", '{"log_history": 3}', "log_history"),
        ("notes.txt", "hello", "SFT or GRPO"),
        ("a.jsonl", '{"reward": "much"}', "no signal"),
        ("a.json", '{"reward": 3}', "log_history"),
        ("a.csv", "Step,a - train/loss,b - train/loss\n1,2,3\n", "several runs (a, b)"),
        ("a.jsonl", "\udcff{}", "a.jsonl:1 "),
        ("a.jsonl", "[" * 100_000, "a.jsonl:1 "),
    ],
)
def test_a_file_that_is_not_a_log_is_refused_in_one_sentence(tmp_path, name, content, says, call):
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    out, code = call("--log", path)
    assert out == ""
    assert code.startswith(f"error: {path}")
    assert says in code


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--log", "nowhere"], "nowhere does not exist"),
        (["--log", "."], ". has no log"),
        (["--log", ".", "--run", "tiny"], "LOG= (--log) and RUN= (--run)"),
    ],
)
def test_a_wrong_flag_is_one_sentence(arguments, says, call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert says in call(*arguments)[1]


@pytest.mark.parametrize("torn", ['{"step": 999, "lo', "{", '\n{"step": 9, "a": "\udcc3'])
def test_a_last_line_that_is_being_written_is_passed_over(tmp_path, torn, call, diagnosed):
    path = write(tmp_path / "a.jsonl", collapsed(1))
    with path.open("ab") as file:
        file.write(torn.encode("utf-8", "surrogateescape"))
    log = diagnosed(path)
    assert log["rows"] == len(collapsed(1))
    assert log["symptoms"] == ["entropy-collapse"]
    path.write_text("{")
    said, code = call("--log", path)
    assert "nothing logged yet" in said
    assert code == 1


# --- the forms of a log ----------------------------------------------------------------------


def printed(rows):
    """What transformers prints, in a terminal's file: bars and other lines between the rows."""
    last = rows[-1]["step"]
    yield "Map: 100%|████| 9/9 [00:00<00:00, 9.0it/s]\r\nINFO a | b | c {'noise': 3}\n"
    for row in rows:
        step = row["step"]
        yield f"\r {step - 1}%|█▎  | {step - 1}/{last} [06:42<06:43, 2.9s/it]"
        yield f"\r {step}%|█▎  | {step}/{last} [06:42<06:43, 2.9s/it]\n"
        yield f"{ {key: f'{row[key]:.6g}' for key in row if key != 'step'} }\n"
    yield "{'train_runtime': '12.3', 'train_loss': '0.1'}\n"


def panel(rows):
    """A panel of wandb's, exported as a table."""
    keys = [key for key in {key: 0 for row in rows for key in row} if key != "step"]
    table = csv.writer(text := io.StringIO())
    table.writerow(["Step", *(f"my-run - train/{key}" for key in keys), "my-run - loss__MIN"])
    table.writerows([row["step"], *(row.get(key, "") for key in keys), ""] for row in rows)
    return text.getvalue()


def notebook(rows):
    keys = [key for key in rows[0] if key not in ("step", "loss")]
    yield f"Step | Training Loss | {' | '.join(keys).replace('/', ' / ')}\n-- | --\n"
    for row in rows:
        yield f"{row['step']} | {row['loss']} | {' | '.join(f'{row[key]:.6f}' for key in keys)}\n"


def megatron(rows):
    for row in rows:
        values = " | ".join(f"{k.replace('_', ' ')}: {row[k]:.6E}" for k in row if k != "step")
        yield f" [2025-11-25 07:19:22] iteration {row['step']:8}/  999 | {values} | skipped: 0 |\n"


def lines(rows, renamed):
    return (json.dumps(renamed(row)) + "\n" for row in rows)


def without_step(row):
    return {key: value for key, value in row.items() if key != "step"}


def in_swift(row):
    return {**without_step(row), "global_step/max_steps": f"{row['step']}/999"}


def columns(rows):
    return {key: {str(place): row[key] for place, row in enumerate(rows)} for key in rows[0]}


def in_wandb(row):
    names = {"step": "train/global_step"}
    return {"_step": 7 * row["step"], **{names.get(k, f"train/{k}"): v for k, v in row.items()}}


FORMS = {
    "state.json": lambda rows: [json.dumps({"log_history": rows, "global_step": 9})],
    "text.jsonl": lambda rows: lines(rows, lambda row: {k: str(v) for k, v in row.items()}),
    "history.jsonl": lambda rows: lines(rows, in_wandb),
    "history.json": lambda rows: [json.dumps(columns([in_wandb(row) for row in rows]))],
    "panel.csv": panel,
    "run.log": printed,
    "swift.jsonl": lambda rows: lines(rows, in_swift),
    "swift.out": lambda rows: (f"Train: 3%|█ | 1/3 [2<3]\r{in_swift(row)}\n" for row in rows),
    "openrlhf.log": lambda rows: (
        f"INFO Global step {row['step']}: {without_step(row)}\n" for row in rows
    ),
    "numpy.log": lambda rows: (
        "{" + ", ".join(f"'{k}': np.float64({row[k]})" for k in row) + "}\n" for row in rows
    ),
    "wrapped.log": lambda rows: (f"{row}\n".replace(",", ",\n", 3) for row in rows),
    "pretty.log": lambda rows: (json.dumps(row, indent=2) + "\n" for row in rows),
    "notebook.txt": notebook,
    "megatron.log": megatron,
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_log_is_read_to_the_same_findings(tmp_path, name, diagnosed):
    rows = changed(foreign(3, rows=24), "entropy", lambda row: 0.9 * 0.9**row)
    path = tmp_path / name
    path.write_text("".join(FORMS[name](rows)))
    log = diagnosed(path)
    assert (log["kind"], log["rows"], log["steps"]) == (GRPO, 24, [5, 120])
    assert log["symptoms"] == ["entropy-collapse"]
    assert any(
        "correctness_reward_func/mean is taken for right answers" in g for g in log["guessed"]
    )


def test_output_in_utf_16_and_of_verl_is_read(tmp_path, diagnosed):
    rows = changed(grpo_log(1, rows=24), "response", lambda row: 300 * 0.8**row)
    path = tmp_path / "verl.log"
    path.write_text(
        "".join(
            f"\x1b[36m(TaskRunner pid=1)\x1b[0m step:{row['step']} - actor/pg_loss:{row['loss']} - "
            f"critic/score/mean:{row['reward']} - response_length/mean:{row['response']}\n"
            for row in rows
        ),
        encoding="utf-16",
    )
    log = diagnosed(path)
    assert (log["rows"], log["steps"], log["symptoms"]) == (24, [5, 120], ["length-collapse"])


def test_rows_that_name_no_step_are_counted_and_that_is_said(tmp_path, diagnosed):
    path = tmp_path / "axolotl.out"
    path.write_text("".join(f"{without_step(row)}\n" for row in sft_log(1)))
    log = diagnosed(path)
    assert (log["kind"], log["steps"]) == (SFT, [1, 40])
    assert log["guessed"] == ["Rows are counted as steps"]


def test_numbers_that_a_table_merely_lacks_are_not_lost(tmp_path, diagnosed):
    rows = [{"train/global_step": r["step"], **r, "eval_loss": math.nan} for r in sft_log(1)]
    absent = dict.fromkeys(rows[0], math.nan)
    rows += [{**absent, "train/global_step": 200, "eval_loss": 0.3, "eval_runtime": 2.0}]
    assert diagnosed(write(tmp_path / "frame.jsonl", rows))["symptoms"] == []


@pytest.mark.parametrize("name", ["logging.jsonl", "trainer_log.jsonl", "files/output.log"])
def test_folders_of_other_trainers_are_known(tmp_path, name, diagnosed):
    write(tmp_path / name, collapsed(1))
    assert diagnosed(tmp_path)["symptoms"] == ["entropy-collapse"]


def test_a_folder_asks_for_tensorboards_library_or_else_for_a_file(tmp_path, call, monkeypatch):
    (tmp_path / "notes.txt").write_text("")
    assert "name one of its files: notes.txt" in call("--log", tmp_path)[1]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "events.out.tfevents.1").write_text("")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert "pip install tensorboard" in call("--log", tmp_path)[1]


def test_a_folder_of_tensorboard_is_read_to_the_same_findings(tmp_path, diagnosed):
    pytest.importorskip("tensorboard", reason="the library is not among the requirements")
    writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(tmp_path / "runs")
    for row in collapsed(1):
        for key in row.keys() - {"step"}:
            writer.add_scalar(f"train/{key}", row[key], row["step"])
        writer.add_scalar("eval/loss", math.nan, row["step"])
    writer.close()
    log = diagnosed(tmp_path)
    assert (log["steps"], log["symptoms"]) == ([5, 40], ["entropy-collapse"])


def test_the_truth_is_guessed_only_where_it_can_be_and_may_be_named(tmp_path, call, diagnosed):
    rows = hacked(23, rows=24)
    for row in rows:
        row["rewards/quality"] = 3 * row.pop("rewards/optimal/mean")
    path = write(tmp_path / "a.jsonl", changed(rows, "rewards/brevity", lambda row: 0.5))
    assert "hacking" not in diagnosed(path)["symptoms"]
    said, _ = call("--log", path, "--truth", "quality")
    assert "as TRUTH says" in said
    assert "reward hacking" in said
    assert "rewards/quality" in call("--log", path, "--truth", "qualty")[1]


def test_a_reward_that_pays_by_degrees_is_not_taken_for_the_truth(tmp_path, diagnosed):
    rows = changed(foreign(1), "rewards/correctness_reward_func/std", lambda row: 0.05)
    form, hint = diagnosed(write(tmp_path / "a.jsonl", rows))["guessed"]
    assert "well-formed" in form
    assert "TRUTH=key names it: rewards/correctness_reward_func/mean" in hint


def test_what_the_rest_of_a_log_refutes_was_and_is_no_finding(tmp_path, call, diagnosed):
    rows = [*stuck(1, rows=30), *grpo_log(1, rows=60)]
    for place, row in enumerate(rows):
        row["step"] = 5 * (place + 1)
    path = write(tmp_path / "a.jsonl", rows)
    log = diagnosed(path)
    assert log["symptoms"] == []
    assert {"kl-flat"} <= {one["symptom"] for one in log["past"]}
    assert "Was, from step" in call("--log", path)[0]


@needs_cases
@pytest.mark.parametrize(
    ("name", "symptoms"),
    [
        ("numbers-as-text", {"nonfinite", "zero-variance"}),
        ("kl-nan", {"kl-lost"}),
        ("sft-loss-zero-eval-nan", {"loss-zero", "nonfinite"}),
        ("sft-loss-zero-norm-null", {"loss-zero", "nonfinite"}),
        ("sft-eval-nan", {"nonfinite"}),
        ("wandb-prefix", {"zero-variance"}),
        ("kl-high-from-the-first-row", {"kl-reference", "plateau", "entropy-flat"}),
        ("norm-mostly-zero", set()),
        ("late-riser", set()),
    ],
)
def test_shared_cases_have_their_findings(name, symptoms, diagnosed):
    assert set(diagnosed(CASES / "logs" / f"{name}.jsonl")["symptoms"]) == symptoms


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_run_without_a_log_that_can_be_read_fails_in_a_sentence(runs, flags, call):
    for log in (runs / "tiny").glob("*/log.jsonl"):
        log.write_text("hello\n")
    out, code = call("--run", "tiny", *flags)
    assert code == f"error: {runs / 'tiny'} has no log that can be read"
    assert out == ""


@pytest.mark.parametrize("kind", [SFT, GRPO])
def test_the_row_that_ended_a_training_is_a_finding_even_where_it_is_the_only_one(tmp_path, kind):
    last = {"weight": None, "learning_rate": 0.1, "trainer": kind, "step": 999}
    why = {"lost": "a weight is not a finite number"}
    healthy = sft_log(1) if kind == SFT else grpo_log(1)
    for rows in ([], healthy):
        patient = examine("a", write(tmp_path / "a.jsonl", [*rows, {**last, **why}]))
        worst = patient.findings[0]
        assert (patient.kind, worst.symptom, worst.level) == (kind, "nonfinite", "stop")
        assert (worst.step, worst.evidence) == (999, why["lost"])
    assert not examine("b", write(tmp_path / "b.jsonl", [*healthy, last])).serious


def test_names_that_look_like_markup_are_printed_as_they_are(tmp_path, call):
    said, code = call("--log", write(tmp_path / "[red]x[" / "log.jsonl", sft_log(1)))
    assert code == 0
    assert "[red]x[" in said
