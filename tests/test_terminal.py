"""What a terminal shows of a day and an answer: signs, bars, nothing hostile."""

import io
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import day as small_day
from rich.console import Console

from data.event import Event
from data.problem import Problem
from data.prompts import answer, prompt, schedule_xml
from data.solver import interval_optimum
from eval.day.terminal import draw_day, visible, write
from eval.show.showcase import drawn_answer, drawn_problem
from rewards.verify import verify

HOSTILE = "a\x1b[31mred\x07\r\u202egnp\u2028[bold]x[/bold] :smile: \x9b2J\ud800"
ART, BAND, DRILL, ECHO, CHESS = small_day().events


class Paper(io.TextIOWrapper):
    """A file with an encoding, whose text can be read."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, newline="")

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)


def drawn(completion: str, problem: Problem | None = None, encoding: str = "utf-8", **console):
    """What is drawn of an answer to a problem."""
    problem = problem or small_day()
    paper = Paper(encoding)
    given = {"force_terminal": True, "width": 80, "color_system": None, **console}
    row = {
        "id": "x", "tier": "", "problem": problem, "prompt": prompt(problem),
        "gold": answer(interval_optimum(problem), None),
    }  # fmt: skip
    verdict = {"arm": "base", "sample": 0, **verify(problem, completion).to_json()}
    finish = "length" if completion.endswith("so many") else "stop"
    sample = {"completion": completion, "finish_reason": finish, "tokens": 7}
    console_of_paper = Console(file=paper, _environ={}, **given)
    draw_day(console_of_paper, drawn_problem(row), drawn_answer(problem, {**verdict, **sample}))
    return paper.text()


def line_of(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if name in line)


@pytest.mark.parametrize("terminal", [True, False])
def test_signs_say_what_was_chosen_what_is_optimal_and_what_breaks_a_rule(terminal):
    text = drawn(schedule_xml([ART, BAND, CHESS]), force_terminal=terminal)
    assert re.fullmatch(r"✓◆!  09:00–10:00   60 Art +\S+ *", line_of(text, "Art"))
    assert re.fullmatch(r"✓ !  09:30–11:00   90 Band +\S+ *", line_of(text, "Band"))
    assert line_of(text, "Drill").startswith(" ◆   10:00–10:30   30 Drill ")
    assert line_of(text, "Chess").startswith("✓◆ ★ 11:00–11:30   60 Chess ")
    assert "✕ infeasible\n         overlap: Art / Band\n" in text
    assert text.endswith("optimum  180 weighted minutes, proven\n")
    assert max(map(len, text.splitlines())) <= 80


def test_bars_lie_at_their_times():
    text = drawn(schedule_xml([ART, DRILL, ECHO, CHESS]))
    bars = {name: line_of(text, name).rstrip() for name in ("Art", "Drill", "Echo")}
    begins = {name: row.index("█") for name, row in bars.items()}
    # Each begins where the one before ends, up to the column that they share.
    assert abs(len(bars["Art"]) - begins["Drill"]) <= 1
    assert abs(len(bars["Drill"]) - begins["Echo"]) <= 1
    # An hour is twice as long as half of one.
    assert abs(len(bars["Art"]) - begins["Art"] - (len(bars["Echo"]) - begins["Drill"])) <= 1


@pytest.mark.parametrize(
    ("completion", "status", "share"),
    [
        (schedule_xml([ART, DRILL, ECHO, CHESS]), "optimal", "180 .*100%"),
        (schedule_xml([BAND, CHESS]), "feasible", "150 .*83%"),
        ("<think>\nso many", "unparsable", "0 weighted minutes, since"),
    ],
)
def test_the_verdict_is_drawn_with_its_share_of_the_optimum(completion, status, share):
    text = drawn(completion)
    assert line_of(text, "verdict").endswith(status)
    assert re.search(share, line_of(text, "answer"))
    assert ("cut off after 7 tokens" in text) == (status == "unparsable")


def test_events_not_as_asked_have_rows_of_their_own():
    wrong = [Event(540, 600, "Ghost"), Event(605, 630, "Drill"), CHESS, CHESS]
    text = drawn(schedule_xml(wrong))
    for times in ("09:00–10:00      Ghost", "10:05–10:30      Drill", "11:00–11:30      Chess"):
        assert re.search(rf"^  !  {times} +\S+ *$", text, re.MULTILINE)
    for violation in ("unknown_event: Ghost", "altered_time: Drill", "duplicate: Chess"):
        assert f"         {violation}\n" in text


def test_ascii_alone_suffices():
    problem = Problem((Event(540, 600, "Café 💃"), BAND), (), optimum=90)
    text = drawn(schedule_xml([BAND]), problem, encoding="ascii")
    assert text.isascii()
    assert "Caf\\xe9" in text
    assert re.search(r"09:30\\u201311:00   90 Band +(\\u2590)?(\\u2588)+", text)


@pytest.mark.parametrize("width", [60, 300])
def test_rows_fit_the_terminal(width):
    events = (Event(0, 1439, "週次のプロジェクト定例会議 of the department"), Event(600, 601, "b"))
    text = drawn(schedule_xml(events[:1]), Problem(events, ("b",), optimum=1439), width=width)
    for row in (line for line in text.splitlines() if "–" in line):
        assert sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in row) <= width


@pytest.mark.parametrize(("terminal", "colour"), [(True, "truecolor"), (False, None)])
def test_what_a_model_writes_cannot_move_colour_or_hide_anything(terminal, colour):
    names = [Event(540, 600, HOSTILE), Event(600, 630, "[red]Drill[/red]")]
    text = drawn(schedule_xml(names), force_terminal=terminal, color_system=colour)
    ours = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in ours if c != "\n")
    assert "\x1b[31mred" not in text
    assert "[red]Drill" in ours
    assert "\\x1b[31mred" in ours


@given(st.text())
def test_written_text_is_not_wrapped_and_has_nothing_that_is_not_seen(text):
    paper = Paper()
    console = Console(file=paper, force_terminal=True, color_system="truecolor", width=20)
    write(console, HOSTILE + " " + "long " * 20)
    assert paper.text().count("\n") == 1
    result = visible(text)
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in result if c != "\n")
    assert result.count("\n") == text.count("\n")
    result.encode()
