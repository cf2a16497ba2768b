"""README and docs/: what they name exists, what they show runs, and the example has its score."""

import importlib.util
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
from running import ROOT, rows_in
from test_makefile import run_make

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLE = ROOT / "docs" / "example"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def _text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def _commands(page: Path) -> list[str]:
    """Everything that stands as code: lines of blocks and spans of text."""
    text = _text(page)
    lines = [line for _, block in FENCE.findall(text) for line in block.splitlines()]
    spans = SPAN.findall(FENCE.sub("", text))
    return [" ".join(command.split("#")[0].split()) for command in (*lines, *spans)]


def _headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", _text(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@each_page
def test_make_takes_every_goal_and_setting_that_a_page_names(page):
    for command in _commands(page):
        if command.startswith("make ") and "$" not in command:
            words = shlex.split(command)
            tried = run_make(*words[1:])
            assert tried.returncode == 0, f"`{command}`: {tried.stderr}"


@each_page
def test_every_module_that_a_page_runs_exists(page):
    for module in re.findall(r"python -m ([\w.]+)", _text(page)):
        assert importlib.util.find_spec(module.rstrip(".")), module


@each_page
def test_every_path_that_a_page_names_exists(page):
    source = r"\b(?:data|rewards|pipeline|eval|tests)/[\w/-]+\.(?:py|yaml)\b"
    for path in re.findall(rf"{source}|\bdocs/[\w/-]+\.\w+\b", _text(page)):
        assert (ROOT / path).exists(), path


@each_page
def test_every_link_of_a_page_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", _text(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        assert not anchor or anchor in _headings(target), link


@each_page
def test_python_that_a_page_shows_with_assertions_holds(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for language, block in FENCE.findall(_text(page)):
        if language == "python" and "assert " in block:
            exec(compile(block, page.name, "exec"), {})


@pytest.fixture
def judged(run_command, tmp_path):
    """A function that judges an example of the docs; returns the verdicts."""

    def judge(prefix: str, *flags: str) -> list[dict]:
        out = tmp_path / "verdicts.jsonl"
        files = [f"--{of}={EXAMPLE / (prefix + of)}.jsonl" for of in ("problems", "completions")]
        assert run_command("eval.score", *files, f"--out={out}", *flags)[1] == 0
        return rows_in(out)

    return judge


def test_the_example_has_the_score_that_the_readme_states(judged):
    verdicts = judged("")
    counts = Counter(verdict["status"] for verdict in verdicts)
    readme = _text(ROOT / "README.md")
    stated = {word: int(n) for n, word in re.findall(r"(\d+) (\w+(?:able|ible|imal))\b", readme)}
    assert {status: stated[status] for status in counts} == counts
    assert len(counts) == 4
    mean = sum(verdict["ratio"] for verdict in verdicts) / len(verdicts)
    assert f"**{mean:.4f}**" in readme


@pytest.mark.parametrize(
    ("judge", "measure", "statuses"),
    [
        ("ours", "ratio", ["optimal", "infeasible", "feasible"]),
        ("blog", "score", ["valid", "overlaps", "fewer_than_2_events"]),
    ],
)
def test_both_judges_say_of_that_example_what_the_docs_state(judged, judge, measure, statuses):
    verdicts = judged("published-", f"--judge={judge}")
    assert [verdict["status"] for verdict in verdicts] == statuses
    mean = sum(verdict[measure] for verdict in verdicts) / len(verdicts)
    assert f" {mean:.4f} |" in _text(ROOT / "docs" / "evaluation.md")
