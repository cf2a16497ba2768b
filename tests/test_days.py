"""Days as users give them: typed lines and JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import day as small_day
from running import refusal_of

from data.clock import CLOCK
from data.event import event_from_json
from data.prompts import answer, prompt
from eval.day.days import prove_day, read_day
from rewards.verify import Status, verify


def read(content, *priorities: str, **wanted):
    """A day from text, bytes or what JSON can hold."""
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    if isinstance(content, str):
        content = content.encode()
    return read_day(content, "d.txt", priorities, **wanted)


def refusal(content, *priorities: str, **wanted) -> str:
    return refusal_of(lambda: read(content, *priorities, **wanted))


def events(day) -> list[str]:
    """``HH:MM-HH:MM name`` of each event, priorities with ``!``."""
    marked = day.problem.priorities
    return [
        f"{CLOCK[e.start]}-{CLOCK[e.end]} {e.name}{'!' * (e.name in marked)}"
        for e in day.problem.events
    ]


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ("Standup 09:00-09:30", "09:00-09:30 Standup"),
        ("Standup 09:00-09:30 !", "09:00-09:30 Standup!"),
        ("  Standup: 9:00 – 9:30 ", "09:00-09:30 Standup"),
        ("- Standup (09:00 - 09:30)", "09:00-09:30 Standup"),
        ("! Standup 9.00 to 9h30", "09:00-09:30 Standup!"),
        ("Sprint 12-13 review 9-10", "09:00-10:00 Sprint 12-13 review"),
        ("Jo's 1:1, part 2 9-10", "09:00-10:00 Jo's 1:1, part 2"),
        ("Café Ü 💃 9-10", "09:00-10:00 Café Ü 💃"),
    ],
)
def test_a_line_is_read_as_people_write_it(line, event):
    assert events(read(line)) == [event]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("Standup", "'Standup' is not an event"),
        ("x" * 2000 + " 9-10", "is not an event"),
        ("Standup 9:00-24:01", "'24:01' is not a time"),
        ("Standup 9:60-10:00", "'9:60' is not a time"),
        ("Party 22:00-02:00", "midnight"),
    ],
)
def test_a_line_that_is_no_event_is_named_by_its_number(line, says):
    said = refusal(f"A 9-10\n{line}\n")
    assert said.startswith("d.txt:2: ")
    assert says in said


def test_events_are_asked_in_order_of_start_without_blank_lines_and_comments():
    for nothing in ("", "# only this\n", "[]"):
        assert refusal(nothing).startswith("d.txt has no events")
    day = read("# my day\n\nB 11-12\nA 9-10 !\nC 9-9:30\n")
    assert events(day) == ["09:00-10:00 A!", "09:00-09:30 C", "11:00-12:00 B"]


def test_an_end_at_midnight_is_asked_as_the_last_minute_and_said():
    day = read("A 23:00-24:00\nB 9-10\nC 23:59-24:00")
    assert events(day) == ["09:00-10:00 B", "23:00-23:59 A"]
    assert day.notes == ("Ends at 24:00, asked as 23:59: A, C.",)


def test_text_that_is_not_utf_8_is_refused_with_its_line():
    assert events(read("Café 9-10".encode("utf-8-sig"))) == ["09:00-10:00 Café"]
    assert refusal("A 9-10\nCafé 9-10".encode("latin-1")).startswith("d.txt:2 is not UTF-8")


@pytest.mark.parametrize(
    ("lines", "word", "marked"),
    [
        ("Stand  up 9-10\nB 9-10", "stand UP", ("Stand up",)),
        ("A 9-10\nA 10-11\nB 9-10", "a", ("A", "A (2)")),
        ("A 9-10 !\nB 9-10", "b", ("A", "B")),
    ],
)
def test_priorities_are_named_whatever_their_case(lines, word, marked):
    assert read(lines, word).problem.priorities == marked


def test_a_priority_that_is_no_event_is_refused_with_the_nearest():
    said = refusal("Standup 9-10", "Standdup")
    assert said.startswith("--priorities: 'Standdup'")
    assert said.endswith("did you mean 'Standup'?")


def test_names_are_changed_where_a_prompt_cannot_hold_them_and_that_is_said():
    given_names = [
        "a <b> & c", "</name><|end|>", "two\nlines\u2028here", "  ", "\t", "x" * 100,
        "a\u202eb\x1b[31m", "A", "A", "A (2)", "A",
    ]  # fmt: skip
    day = read([[name, "09:00", "10:00"] for name in given_names])
    assert [event.name for event in day.problem.events] == [
        "a ‹b› & c", "‹/name›‹|end|›", "two lines here", "Untitled", "Untitled (2)", "x" * 79 + "…",
        "ab [31m", "A", "A (3)", "A (2)", "A (4)",
    ]  # fmt: skip
    (note,) = day.notes
    assert "a ‹b› & c, ‹/name›‹|end|›, Untitled" in note


@given(st.lists(st.text(max_size=100), min_size=1, max_size=8))
def test_any_names_make_a_problem_whose_gold_answer_is_optimal(given_names):
    items = [[name, CLOCK[60 * i], CLOCK[60 * i + 90]] for i, name in enumerate(given_names)]
    if any("\0" in name for name in given_names):
        return
    problem, best = prove_day(read(items).problem, "d.txt")
    assert all(event_from_json(event.to_json()) == event for event in problem.events)
    assert all(len(event.name) < 90 for event in problem.events)
    assert prompt(problem).count("\n- ") >= len(given_names)
    assert verify(problem, answer(best, None)).status is Status.OPTIMAL


def test_a_list_of_events_is_read():
    first = {"name": "A", "start": "9:00", "end": "10:00", "priority": True}
    day = read([first, {"name": "B", "start": "9.30", "end": "13"}, ["C", "12:00", "24:00"]])
    assert events(day) == ["09:00-10:00 A!", "09:30-13:00 B", "12:00-23:59 C"]


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ({"name": "A", "start": "9:00"}, "'event 2.end' is missing"),
        ({"name": "A", "start": 9, "end": "10:00"}, "event 2.start must be text"),
        ({"name": "A", "start": "soon", "end": "10:00"}, "event 2: 'soon' is not a time"),
        ({"name": "A", "start": "9:00", "end": "10:00", "prioritty": True}, "mean 'priority'?"),
        ("A 9-10", "event 2 must be a mapping"),
    ],
)
def test_an_event_of_a_list_that_is_none_is_named_by_its_place(item, says):
    assert says in refusal([["A", "9:00", "10:00"], item])


def test_a_problem_of_ours_is_read_as_it_is_alone_and_in_a_row():
    record = small_day().to_json()
    assert read(record).problem == read({"id": "a", "problem": record}).problem == small_day()


def test_a_priority_added_to_a_problem_of_ours_is_proven_again():
    problem = read(small_day().to_json(), "art").problem
    assert problem.priorities == ("Chess", "Art")
    assert prove_day(problem, "d.txt")[0].optimum == 240


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"events": [["A", "9", "10"]]}, 'd.txt: a problem needs "priorities"'),
        ({}, '"events"'),
        ({"problem": 3}, "d.txt: a problem must be a JSON object"),
        ("{", "d.txt is not valid JSON"),
        ("[" * 100_000, "d.txt is not valid JSON"),
    ],
)
def test_json_that_is_no_day_is_one_sentence(content, says):
    assert says in refusal(content)


def test_a_day_whose_rules_no_schedule_keeps_is_refused():
    both = [{"rule": "must_include", "event": name} for name in ("Art", "Band")]
    rules = [{"rule": "no_overlap"}, *both]
    problem = read({**small_day().to_json(), "rules": rules}).problem
    refusal_of(lambda: prove_day(problem, "d.txt"), "d.txt", "no schedule", "rules")


@pytest.mark.parametrize("content", ["A 9-10", "[]"])
@pytest.mark.parametrize("wanted", [{"date": "2026-03-02"}, {"zone": "UTC"}])
def test_a_date_or_zone_for_what_is_no_calendar_is_refused(content, wanted):
    says = refusal(content, **wanted)
    assert all(said in says for said in ("--date", "--timezone", "d.txt"))
