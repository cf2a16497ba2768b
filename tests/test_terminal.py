import io
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from data.event import Event
from data.problem import Problem
from data.prompts import answer, prompt, schedule_xml
from data.solver import interval_optimum
from eval.day.terminal import draw, shown, write
from eval.show.showcase import drawn_answer, drawn_problem
from rewards.verify import verify
from tests.conftest import day as small_day

HOSTILE = "a\x1b[31mred\x07\r\u202egnp\u2028[bold]x[/bold] :smile: \x9b2J\ud800"


class Paper(io.TextIOWrapper):
    """A file with an encoding, whose text can be read."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, newline="")

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)


def drawn(
    completion: str,
    problem: Problem | None = None,
    *,
    terminal: bool = True,
    width: int = 80,
    colour: str | None = None,
    encoding: str = "utf-8",
) -> str:
    """What is drawn of an answer to a problem."""
    problem = problem or small_day()
    paper = Paper(encoding)
    console = Console(
        file=paper, force_terminal=terminal, width=width, color_system=colour, _environ={}
    )
    row = {
        "id": "x", "tier": "", "problem": problem, "prompt": prompt(problem),
        "gold": answer(interval_optimum(problem), None),
    }  # fmt: skip
    verdict = {"arm": "base", "sample": 0, **verify(problem, completion).to_json()}
    sample = {"completion": completion, "finish_reason": "length", "tokens": 7}
    draw(console, drawn_problem(row), drawn_answer(problem, {**verdict, **sample}))
    return paper.text()


def row_of(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if name in line)


ART, BAND, DRILL, ECHO, CHESS = small_day().events


def test_bars_say_what_was_chosen_what_is_optimal_and_what_breaks_a_rule():
    text = drawn(schedule_xml([ART, BAND, CHESS]))
    assert re.match(r"✓◆!  09:00–10:00 Art +▓+$", row_of(text, "Art"))
    assert re.match(r"✓ !  09:30–11:00 Band +▓+$", row_of(text, "Band"))
    assert re.match(r" ◆   10:00–10:30 Drill +░+$", row_of(text, "Drill"))
    assert re.match(r"✓◆ ★ 11:00–11:30 Chess +█+$", row_of(text, "Chess"))
    assert "verdict  ✕ infeasible\n         overlap: Art / Band\n" in text
    assert "answer   0 weighted minutes, since it breaks a rule\n" in text
    assert text.endswith("optimum  180 weighted minutes, proven\n")
    assert max(map(len, text.splitlines())) <= 80


def test_bars_lie_at_their_times():
    rows = drawn(schedule_xml([ART, DRILL, ECHO, CHESS])).splitlines()
    bars = {name: next(row for row in rows if name in row) for name in ("Art", "Drill", "Echo")}
    ends = {name: (row.index("█"), row.rindex("█") + 1) for name, row in bars.items()}
    assert ends["Art"][1] == ends["Drill"][0]
    assert ends["Drill"][1] == ends["Echo"][0]
    # An hour is twice as long as half of one, up to a column.
    assert abs((ends["Art"][1] - ends["Art"][0]) - (ends["Echo"][1] - ends["Drill"][0])) <= 1
    hours = next(row for row in rows if "09" in row and "–" not in row)
    assert hours.index("09") == ends["Art"][0]
    assert abs(hours.index("10") - ends["Drill"][0]) <= 1


def test_an_optimal_answer_is_told_from_a_feasible_one():
    assert "verdict  ✓ optimal\n" in drawn(schedule_xml([ART, DRILL, ECHO, CHESS]))
    assert "180 weighted minutes (100% of the optimum)" in drawn(
        schedule_xml([ART, DRILL, ECHO, CHESS])
    )
    text = drawn(schedule_xml([BAND, CHESS]))
    assert "verdict  ○ feasible\n" in text
    assert "answer   150 weighted minutes (83% of the optimum)\n" in text


def test_no_answer_is_unparsable_and_says_where_it_was_cut():
    text = drawn("<think>\nso many")
    assert "verdict  ? unparsable\n         unterminated_reasoning\n" in text
    assert "cut off after 7 tokens" in text
    assert "0 weighted minutes, since it cannot be read" in text


def test_events_not_as_asked_have_rows_of_their_own():
    wrong = [Event(540, 600, "Ghost"), Event(605, 630, "Drill"), CHESS, CHESS]
    text = drawn(schedule_xml(wrong))
    for times in ("09:00–10:00 Ghost", "10:05–10:30 Drill", "11:00–11:30 Chess"):
        assert re.search(rf"^  !  {times} +▓+$", text, re.MULTILINE)
    for said in ("unknown_event: Ghost", "altered_time: Drill", "duplicate: Chess"):
        assert f"         {said}\n" in text
    plain = drawn(schedule_xml(wrong), terminal=False)
    assert "09:00-10:00  Ghost: no such event\n" in plain
    assert "10:05-10:30  Drill: other times" in plain
    assert "11:00-11:30  Chess: listed again" in plain


def test_without_a_terminal_each_event_is_a_plain_line():
    text = drawn(schedule_xml([ART, BAND]), terminal=False)
    assert row_of(text, "Art").startswith("09:00-10:00  Art: 60 weighted minutes, chosen, in the")
    assert row_of(text, "Band").endswith("90 weighted minutes, chosen, overlapping")
    assert row_of(text, "Chess").endswith("not chosen, priority, in the optimum")
    assert not set(text) & set("█▓░\x1b")
    assert drawn(schedule_xml([ART, BAND]), width=40) == text


def test_ascii_alone_suffices_with_and_without_a_terminal():
    problem = Problem((Event(540, 600, "Café 💃"), BAND), (), optimum=90)
    for terminal in (True, False):
        text = drawn(schedule_xml([BAND]), problem, terminal=terminal, encoding="ascii")
        assert text.isascii()
        assert "Caf\\xe9" in text
    assert re.search(r"\+o   09:30-11:00 Band +#+\n", drawn(schedule_xml([BAND]), problem,
                                                            encoding="ascii"))  # fmt: skip


@pytest.mark.parametrize("width", [20, 48, 60, 80, 120, 300])
def test_rows_fit_the_terminal(width):
    problem = Problem(
        (
            Event(0, 1439, "週次のプロジェクト定例会議 of the department"),
            Event(600, 601, "b"),
        ),
        ("b",),
        optimum=1439,
    )
    text = drawn(schedule_xml(problem.events[:1]), problem, width=width)
    rows = [line for line in text.splitlines() if "–" in line]
    for row in rows:
        wide = sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in row)
        assert wide <= width
    assert bool(rows) == (width >= 60)


def test_what_a_model_writes_cannot_move_colour_or_hide_anything():
    names = [Event(540, 600, HOSTILE), Event(600, 630, "[red]Drill[/red]")]
    for terminal in (True, False):
        for colour in (None, "truecolor"):
            text = drawn(schedule_xml(names), terminal=terminal, colour=colour)
            ours = re.sub(r"\x1b\[[0-9;]*m", "", text)
            assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in ours if c != "\n")
            assert "\x1b[31mred" not in text
            assert "[red]Drill" in ours
            assert "\\x1b[31mred" in ours


def test_streamed_text_is_escaped_and_not_wrapped():
    paper = Paper()
    console = Console(file=paper, force_terminal=True, color_system="truecolor", width=20)
    write(console, HOSTILE + " " + "long " * 20, end="")
    text = paper.text()
    assert "\n" not in text
    assert "\x1b" not in text
    assert text.startswith("a\\x1b[31mred\\x07\\r\\u202egnp\\u2028[bold]x[/bold] :smile: \\x9b2J")


@given(st.text())
def test_shown_text_has_nothing_that_is_not_seen(text):
    found = shown(text)
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in found if c != "\n")
    assert found.count("\n") == text.count("\n")
    found.encode()


@given(st.text(max_size=60), st.sampled_from(["utf-8", "ascii"]), st.booleans())
def test_any_completion_is_drawn(name, encoding, terminal):
    completion = f"<schedule><event><name>{name}</name><start>09:00</start><end>08:00</end></event>"
    drawn(completion + "</schedule>", terminal=terminal, encoding=encoding)
    drawn(name, terminal=terminal, encoding=encoding)
