"""Progress on the terminal: a line a step, or a live view where it can be drawn."""

import io

import pytest
from rich.console import Console

from pipeline.watch.live import Progress, progress, sparkline


@pytest.mark.parametrize(
    ("values", "width", "bars"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([5.0], 8, "▁"),
        ([2, 2, 2], 8, "▁▁▁"),
        ([9, 9, 0, 1, 0], 3, "▁█▁"),
    ],
)
def test_a_sparkline_goes_from_the_least_of_its_values_to_the_greatest(values, width, bars):
    assert sparkline(values, width) == bars


def test_without_a_terminal_each_step_is_a_line(capsys):
    shown = progress("grpo")
    shown.open(10, 40)
    shown.show(10, {"val/optimal": 0.5})
    shown.started -= 20
    shown.show(20, {"loss": 0.1234, "reward": 0.5, "truth/optimal": 0.25, "memory": 3, "kl": None})
    shown.show(30, {"memory": 1.0})
    shown.show(40, {"loss": 0.5})
    shown.say("warning: so it is")
    shown.close()
    assert capsys.readouterr().out.splitlines() == [
        "step 10/40  val optimal 50.0%",
        "step 20/40  loss 0.1234  reward 0.500  optimal 25.0%  GiB 3.0  0:00:40 left",
        "step 30/40  GiB 1.0  0:00:10 left",
        "step 40/40  loss 0.5000",
        "warning: so it is",
    ]


@pytest.fixture
def terminal():
    """A view in a terminal, and its output."""
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=100, color_system=None)
    return Progress("grpo (grpo)", console), written


def test_in_a_terminal_signals_are_drawn_with_progress_and_time_left(terminal):
    shown, written = terminal
    shown.add({"step": 5, "reward": 0.1})
    shown.open(5, 40)
    shown.show(10, {"reward": 0.3, "val/optimal": 0.5, "tokens_per_second": 812.4})
    shown.show(15, {"reward": 0.2, "truth/optimal": None})
    shown.started -= 20
    shown.say("warning: [red]so it is[/red]")
    shown.close()
    said = written.getvalue()
    assert "warning: [red]so it is[/red]" in said
    last = said.rpartition("grpo (grpo)")[2]
    for part in ("15/40", "0:00:20", "0:00:50", "50.0%", "tokens a second", "812"):
        assert part in last
    reward = next(line for line in last.splitlines() if "reward" in line)
    assert reward.split() == ["reward", "0.200", "▁█▅"]
    assert "optimal" not in last.replace("val optimal", "")


def test_a_view_gives_the_terminal_back_and_may_be_closed_again(terminal):
    shown, written = terminal
    shown.open(0, 10)
    assert "\x1b[?25l" in written.getvalue(), "it hides the cursor"
    shown.close()
    shown.close()
    assert written.getvalue().count("\x1b[?25h") == 1


@pytest.mark.parametrize(
    ("environment", "drawn"),
    [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False), ({"TTY_COMPATIBLE": "0"}, False)],
)
def test_only_a_terminal_that_can_draw_it_gets_the_view(environment, drawn, monkeypatch):
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self):
            return True

    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout", Terminal())
    assert (progress("sft").live is not None) == drawn
