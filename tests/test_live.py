"""Progress on the terminal: a line a step, and a bar where one can be drawn."""

import io

import pytest

from pipeline.watch.live import Progress


def test_without_a_terminal_each_step_is_a_line(capsys):
    shown = Progress("grpo")
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
        "step 20/40  loss 0.1234  reward 0.500  optimal 25.0%  0:00:40 left",
        "step 40/40  loss 0.5000",
        "warning: so it is",
    ]


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("environment", "drawn"),
    [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False), ({"TTY_COMPATIBLE": "0"}, False)],
)
def test_a_bar_is_drawn_below_the_lines_only_in_a_terminal_that_can(
    environment, drawn, monkeypatch
):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    written = Terminal()
    monkeypatch.setattr("sys.stdout", written)
    shown = Progress("grpo (grpo)")
    shown.open(5, 40)
    shown.show(15, {"reward": 0.2})
    shown.say("warning: [red]so it is[/red]")
    shown.close()
    shown.close()
    said = written.getvalue()
    assert "step 15/40  reward 0.200" in said
    assert "warning: [red]so it is[/red]" in said
    assert ("15/40" in said.replace("step 15/40", "")) == drawn
    assert said.count("\x1b[?25h") == int(drawn), "the cursor is given back"
