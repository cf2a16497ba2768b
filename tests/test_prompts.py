"""Prompts, gold answers and traces: complete, exact, and true in every claim. Their words are those
of the committed gallery, see ``test_gallery``."""

import re

import pytest
from problems import day, tier_problems

from data.clock import MINUTE
from data.event import Event
from data.problem import Problem
from data.prompts import answer, messages, narration, prompt, schedule_xml
from data.rules import BASE_RULES, AtMost, Gap
from data.solver import interval_optimum
from data.tiers import TIERS
from rewards.parse import parse

EVENT_LINE = re.compile(r"- (.+) \((\d\d:\d\d) - (\d\d:\d\d)\)")


def section(text: str, title: str) -> list[str]:
    """The lines that start with a dash below a title."""
    below = text.split(f"\n{title}:\n")[1].split("\n\n")[0].splitlines()
    return [line for line in below if line.startswith("- ")]


@pytest.mark.parametrize("tier", TIERS)
def test_the_prompt_says_every_event_priority_and_rule_once(tier):
    for problem in tier_problems(tier, 50):
        text = prompt(problem)
        found = [EVENT_LINE.fullmatch(line).groups() for line in section(text, "Events")]
        assert [Event(MINUTE[s], MINUTE[e], name) for name, s, e in found] == list(problem.events)
        assert section(text, "Priorities") == [f"- {name}" for name in problem.priorities]
        sentences = [rule.sentence() for rule in problem.rules]
        assert section(text, "Rules") == [f"- {s}" for s in sentences if s]


def test_the_prompt_does_not_give_the_optimum_away():
    problem = day()
    assert prompt(problem) == prompt(problem.proven(179))
    assert "180" not in prompt(problem)


def test_the_form_that_the_prompt_shows_is_the_one_that_is_read():
    form = prompt(day()).partition("in this form:\n")[2]
    filled = form.replace("...", "Art").replace("HH:MM", "09:00", 1).replace("HH:MM", "10:00")
    assert parse(filled) == (Event(540, 600, "Art"),)
    assert filled == schedule_xml([Event(540, 600, "Art")])


def test_an_answer_without_reasoning_is_the_schedule_alone():
    gold = interval_optimum(day())
    assert messages("text") == [{"role": "user", "content": "text"}]
    assert answer(gold, None) == schedule_xml(gold)
    assert answer(gold, "so") == f"<think>\nso\n</think>\n{schedule_xml(gold)}"


def test_a_trace_names_the_overlap_the_first_rule_broken_or_no_reason():
    a, b, c = Event(540, 600, "A"), Event(610, 620, "B"), Event(700, 720, "C")
    rules = (*BASE_RULES, Gap(15), AtMost(1))
    lines = ["A = 60", "B breaks gap", "C breaks at_most", "Total 60"]
    assert narration(Problem((a, b, c), (), rules), (a,)).splitlines() == lines
    assert "B is left out" in narration(Problem((a, b), ()), (a,))
    assert "Band overlaps Art" in narration(day(), day().events[:1])
    touching = Event(600, 660, "B")
    assert "overlaps" not in narration(Problem((a, touching), ()), (a, touching))
