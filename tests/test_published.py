"""The published layout: what is imported, what is left out and why, and what stops the import."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from running import BLOG, needs_blog, refusal_of

from data.event import Event
from data.published import read_published, read_rows, source_of
from data.rules import AtMost

ROW = {
    "index": 7,
    "events": [["Chess", "10:30", "11:00"], ["Band", "09:00", "10:00"], ["Art", "09:00", "09:30"]],
    "priority_events": ["Chess"],
    "optimal_score": 120,
    "prompt": "Events: …",
}


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_sound_row_becomes_a_proven_problem_with_its_events_by_start(tmp_path):
    source = write(tmp_path / "p.jsonl", ROW)
    [(problem, raw)], rejects = read_published(source)
    assert (raw, rejects) == (ROW, [])
    # Band and Art start together, so they keep the order of the row.
    assert problem.events == (
        Event(540, 600, "Band"), Event(540, 570, "Art"), Event(630, 660, "Chess"),
    )  # fmt: skip
    assert (problem.priorities, problem.optimum) == (("Chess",), 120)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"optimal_score": 121}, '"optimal_score" is 121'),
        ({"optimal_score": 119}, '"optimal_score" is 119'),
        ({"events": [["Chess", "23:30", "24:59"]]}, "'24:59'"),
        ({"events": [["Chess", "10:30", "11:00"]] * 2}, "name"),
        ({"events": [], "priority_events": []}, '"events"'),
        ({"priority_events": ["Sailing"]}, "'Sailing'"),
    ],
)
def test_a_row_that_breaks_a_rule_is_named_and_left_out(tmp_path, change, reason):
    source = write(tmp_path / "p.jsonl", ROW, {**ROW, **change}, ROW)
    sound, [reject] = read_published(source)
    assert len(sound) == 2
    assert reject.startswith(f"{source}:2: ")
    assert reason in reject


def test_rows_of_ours_and_rows_without_an_optimum_are_proven(tmp_path):
    published = {key: value for key, value in ROW.items() if key != "optimal_score"}
    [(problem, _)], _ = read_published(write(tmp_path / "p.jsonl", published))
    assert problem.optimum == 120
    bare = {"events": ROW["events"], "priorities": ["Chess"]}
    ruled = replace(problem, rules=(*problem.rules, AtMost(1)), optimum=60)
    padded = ruled.to_json()
    padded["rules"] = [{"minutes": None, **rule} for rule in padded["rules"]]  # as Arrow has them
    rows = (bare, {"problem": problem.text}, {"problem": padded}, {"problem": ruled.to_json()})
    sound, rejects = read_published(write(tmp_path / "o.jsonl", *rows))
    assert rejects == []
    assert [read for read, _ in sound] == [problem, problem, ruled, ruled]


@pytest.mark.parametrize(
    ("row", "named"),
    [
        *(
            ({**ROW, key: value}, f'needs "{key}"')
            for key, value in (
                ("events", None), ("events", [["Chess", "10:30"]]),
                ("events", [["Chess", 630, 660]]),
                ("priority_events", "Chess"), ("priority_events", [["Chess"]]),
                ("optimal_score", "120"), ("optimal_score", True), ("optimal_score", 0),
            )
        ),
        # Rows of ours.
        ({"priorities": []}, '"events"'),
        ({"events": ROW["events"], "priorities": "Chess"}, 'row of ours needs "priorities"'),
        ({"events": ROW["events"], "priorities": [], "optimum": "9"}, '"optimum"'),
        ({"events": ROW["events"], "priorities": [], "rules": "gap"}, '"rules"'),
        ({"problem": "a day"}, '"problem" is not valid JSON'),
        ({"problem": [1]}, '"problem" must be'),
    ],
)  # fmt: skip
def test_a_row_of_neither_layout_is_one_sentence_with_line_and_key(tmp_path, row, named):
    source = write(tmp_path / "p.jsonl", ROW, row)
    refusal_of(lambda: read_published(source), f"{source}:2: ", named)


def test_rules_that_no_schedule_keeps_are_named_and_left_out(tmp_path):
    rules = [{"rule": "at_most", "count": 0}]
    row = {"events": ROW["events"], "priorities": [], "rules": rules}
    sound, [reject] = read_published(write(tmp_path / "p.jsonl", row))
    assert (sound, "p.jsonl:1: " in reject) == ([], True)


def test_a_source_says_where_its_splits_are(tmp_path):
    file = write(tmp_path / "p.jsonl", ROW)
    assert source_of("owner/name", "test") == "owner/name:test"
    assert source_of("owner/name:train", "test") == "owner/name:train"
    assert source_of("p/{split}.jsonl", "test") == "p/test.jsonl"
    assert source_of(str(tmp_path), "test") == f"{tmp_path}/test.jsonl"
    assert source_of(file, "test") == file
    assert source_of("some/missing.jsonl", "test") == "some/missing.jsonl"


@pytest.mark.parametrize("name", ["missing.jsonl", "some/missing.jsonl", "a/b/c", "missing"])
def test_a_missing_file_is_not_looked_for_on_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)  # importing it would raise ImportError
    refusal_of(lambda: read_published(name), f"{name} does not exist")


def hub(load_dataset) -> SimpleNamespace:
    exceptions = SimpleNamespace(DatasetsError=LookupError)
    return SimpleNamespace(load_dataset=load_dataset, exceptions=exceptions)


def test_a_split_of_a_hub_dataset_is_read_with_the_places_of_its_rows(monkeypatch):
    row = {key: value for key, value in ROW.items() if key != "index"}
    splits = {"train": [row, {**row, "optimal_score": 1}, row], "test": [row]}
    monkeypatch.setitem(sys.modules, "datasets", hub(lambda name, split: splits[split]))
    sound, [reject] = read_published("owner/name")
    assert [raw["index"] for _, raw in sound] == [0, 2]
    assert reject.startswith("owner/name row 1: ")
    assert [where for where, _ in read_rows("owner/name:test")] == ["owner/name:test row 0"]


def test_a_hub_dataset_that_cannot_be_had_is_one_sentence(monkeypatch):
    def load_dataset(name, split):
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub (OfflineModeIsEnabled)\n…")

    monkeypatch.setitem(sys.modules, "datasets", hub(load_dataset))
    refusal_of(lambda: read_published("owner/name"), "owner/name is no file here", "OfflineMode")


@needs_blog
def test_the_published_data_is_sound_but_for_four_rows_past_midnight():
    train, rejects = read_published(str(BLOG / "train.jsonl"))
    test, none = read_published(str(BLOG / "test.jsonl"))
    assert (len(train), len(test), none) == (496, 100, [])
    named = [reject.removeprefix(f"{BLOG}/train.jsonl:").partition(":")[0] for reject in rejects]
    assert named == ["105", "173", "354", "421"]
    assert all("is not a time between 00:00 and 23:59" in reject for reject in rejects)
