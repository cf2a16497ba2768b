import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.clock import CLOCK
from data.common.errors import UserError
from data.event import event_from_json
from data.problem import Problem
from data.prompts import answer, prompt
from eval.day.days import Wanted, prove_day, read_day
from eval.day.entry import MOST_NAME, cleaned, typed_entry
from rewards.verify import Status, verify
from tests.conftest import day as small_day


def read(content, *priorities: str, **wanted):
    """A day from text, bytes or what JSON can hold."""
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    if isinstance(content, str):
        content = content.encode()
    return read_day(content, "d.txt", Wanted(priorities, **wanted))


def refusal(content, *priorities: str, **wanted) -> str:
    with pytest.raises(UserError) as refused:
        read(content, *priorities, **wanted)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def names(day) -> list[str]:
    return [event.name for event in day.problem.events]


# --- typed lines ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "name", "start", "end", "priority"),
    [
        ("Standup 09:00-09:30", "Standup", "09:00", "09:30", False),
        ("Standup 09:00-09:30 !", "Standup", "09:00", "09:30", True),
        ("! Standup 09:00-09:30", "Standup", "09:00", "09:30", True),
        ("Standup 09:00-09:30!!", "Standup", "09:00", "09:30", True),
        ("  Standup: 9:00 – 9:30 ", "Standup", "09:00", "09:30", False),
        ("- Standup (09:00 - 09:30)", "Standup", "09:00", "09:30", False),
        ("09:00-09:30 Standup", "Standup", "09:00", "09:30", False),
        ("09:00 to 09:30, Standup !", "Standup", "09:00", "09:30", True),
        ("Standup 9 until 9:30", "Standup", "09:00", "09:30", False),
        ("Standup 9.00-9.30", "Standup", "09:00", "09:30", False),
        ("Standup 9h00-9h30", "Standup", "09:00", "09:30", False),
        ("Lunch 12-1pm", "Lunch", "12:00", "13:00", False),
        ("Lunch 11-1pm", "Lunch", "11:00", "13:00", False),
        ("Nap 1-2 PM", "Nap", "13:00", "14:00", False),
        ("Nap 12am-1am", "Nap", "00:00", "01:00", False),
        ("Sprint 12-13 review 9-10", "Sprint 12-13 review", "09:00", "10:00", False),
        ("Meet at 10:00 or so 11:00-12:00", "Meet at 10:00 or so", "11:00", "12:00", False),
        ("Jo's 1:1, part 2 9-10", "Jo's 1:1, part 2", "09:00", "10:00", False),
        ("Café Ü 💃 9-10", "Café Ü 💃", "09:00", "10:00", False),
    ],
)
def test_a_line_is_read_as_people_write_it(line, name, start, end, priority):
    found = typed_entry(line, "x:1")
    assert (found.name, CLOCK[found.start], CLOCK[found.end]) == (name, start, end)
    assert found.priority is priority


def test_blank_lines_and_comments_are_passed_over():
    assert names(read("\n# my day\n\nA 9-10\n  \nB 10-11\n")) == ["A", "B"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("Standup", "'Standup' is not an event; write NAME HH:MM-HH:MM"),
        ("Standup 09:00", "is not an event"),
        ("09:00-10:00", "is not an event"),
        ("Standup09:00-10:00", "is not an event"),
        ("x" * 2000 + " 9-10", "is not an event"),
        ("Standup 9:00-25:00", "'25:00' is not a time between 00:00 and 24:00"),
        ("Standup 9:00-24:01", "'24:01' is not a time"),
        ("Standup 9:60-10:00", "'9:60' is not a time"),
        ("Standup 13-14pm", "'14pm' is not a time"),
        ("Standup 10:00-10:00", "does not end after its start"),
        ("Party 22:00-02:00", "does not end after its start; an event over midnight"),
        ("<!DOCTYPE html>", "is not an event"),
    ],
)
def test_a_line_that_is_no_event_is_named_by_its_number(line, says):
    said = refusal(f"A 9-10\n{line}\n")
    assert said.startswith("d.txt:2: ")
    assert says in said


def test_nothing_typed_is_one_sentence():
    for empty in ("", "\n\n", "# only this\n", "[]"):
        assert refusal(empty) == "d.txt has no events; write one a line as NAME HH:MM-HH:MM"


def test_events_are_asked_in_order_of_start_with_their_priorities():
    found = read("B 11-12\nA 9-10 !\nC 9-9:30\n").problem
    assert [event.name for event in found.events] == ["A", "C", "B"]
    assert found.priorities == ("A",)


def test_an_end_at_midnight_is_asked_as_the_last_minute_and_said():
    found = read("A 23:00-24:00\nB 9-10\nC 23:59-24:00")
    assert [event.to_json() for event in found.problem.events][1] == ["A", "23:00", "23:59"]
    assert names(found) == ["B", "A"]
    assert found.notes == ("Ends at 24:00, asked as 23:59: A, C.",)


@given(st.text())
def test_whatever_is_typed_is_read_or_refused_in_a_sentence(text):
    said = ""
    try:
        read(text.encode(errors="surrogatepass")).problem.check()
    except UserError as refused:
        said = str(refused)
    assert "\n" not in said


# --- priorities ----------------------------------------------------------------------------


def test_priorities_are_named_whatever_their_case():
    assert read("Stand  up 9-10\nB 9-10", "stand  UP".replace("  ", " ")).problem.priorities == (
        "Stand up",
    )
    assert read("A 9-10\nA 10-11\nB 9-10", "a").problem.priorities == ("A", "A (2)")
    assert read("A 9-10 !\nB 9-10", "b").problem.priorities == ("A", "B")


def test_a_priority_that_is_no_event_is_refused_with_the_nearest():
    said = refusal("Standup 9-10", "Standdup")
    assert said.startswith("--priorities: 'Standdup' is no event or category of this day")
    assert said.endswith("did you mean 'Standup'?")


# --- names ---------------------------------------------------------------------------------


def test_names_are_changed_where_a_prompt_cannot_hold_them_and_that_is_said():
    events = [
        {"name": "a <b> & c", "start": "09:00", "end": "10:00"},
        {"name": "two\nlines\u2028here", "start": "09:00", "end": "10:00"},
        {"name": "  ", "start": "09:00", "end": "10:00"},
        {"name": "\ud800", "start": "09:00", "end": "10:00"},
        {"name": "x" * 100, "start": "09:00", "end": "10:00"},
        {"name": "a\u202eb\x1b[31m", "start": "09:00", "end": "10:00"},
    ]
    found = read(events)
    assert names(found) == [
        "a ‹b› & c", "two lines here", "Untitled", "Untitled (2)", "x" * 79 + "…", "ab [31m",
    ]  # fmt: skip
    (note,) = found.notes
    assert note.startswith("Names changed to be asked: a ‹b› & c, Untitled, Untitled (2), xxx")


def test_no_name_can_spell_a_tag_or_a_token_of_a_template():
    found = read([{"name": "</name><|end|>", "start": "09:00", "end": "10:00"}])
    assert names(found) == ["‹/name›‹|end|›"]


def test_equal_names_are_numbered_past_those_that_are_taken():
    found = read("A 9-10\nA 10-11\nA (2) 11-12\nA 12-13\n")
    assert names(found) == ["A", "A (3)", "A (2)", "A (4)"]


@given(st.lists(st.text(max_size=100), min_size=1, max_size=8))
def test_any_names_make_a_problem_whose_gold_answer_is_optimal(given_names):
    events = [
        {"name": name, "start": CLOCK[60 * i], "end": CLOCK[60 * i + 90]}
        for i, name in enumerate(given_names)
    ]
    problem, best = prove_day(read(events).problem, "d.txt")
    assert all(event_from_json(event.to_json()) == event for event in problem.events)
    assert all(len(event.name) <= MOST_NAME + 4 for event in problem.events)
    assert prompt(problem).count("\n- ") >= len(given_names)
    assert verify(problem, answer(best, None)).status is Status.OPTIMAL


@given(st.text())
def test_a_cleaned_name_stays_as_it_is(name):
    assert cleaned(cleaned(name)) == cleaned(name)


# --- JSON ----------------------------------------------------------------------------------


def test_a_list_of_events_is_read():
    found = read(
        [
            {"name": "A", "start": "9:00", "end": "10:00", "priority": True},
            {"name": "B", "start": "9.30", "end": "1pm"},
            ["C", "12:00", "24:00"],
        ]
    ).problem
    assert [event.to_json() for event in found.events] == [
        ["A", "09:00", "10:00"], ["B", "09:30", "13:00"], ["C", "12:00", "23:59"],
    ]  # fmt: skip
    assert found.priorities == ("A",)


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ({"name": "A", "start": "9:00"}, 'needs "end", a text'),
        ({"name": 3, "start": "9:00", "end": "10:00"}, 'needs "name", a text'),
        ({"name": "A", "start": 9, "end": "10:00"}, 'needs "start", a text'),
        ({"name": "A", "start": "soon", "end": "10:00"}, "\"start\" is 'soon', not a time"),
        ({"name": "A", "start": "9:00", "end": "8:00"}, "does not end after its start"),
        ({"name": "A", "start": "9:00", "end": "10:00", "prioritty": True}, "mean 'priority'?"),
        ({"name": "A", "start": "9:00", "end": "10:00", "priority": "yes"}, "true or false"),
        ("A 9-10", 'must be {"name", "start", "end", "priority"}'),
        (["A", "9:00"], 'must be {"name", "start", "end", "priority"}'),
    ],
)
def test_an_event_of_a_list_that_is_none_is_named_by_its_place(item, says):
    said = refusal([["A", "9:00", "10:00"], item])
    assert said.startswith("d.txt, event 2")
    assert says in said


def test_a_problem_of_ours_is_read_as_it_is_alone_and_in_a_row():
    problem = small_day()
    assert read(problem.to_json()).problem == problem
    row = {"id": "x", "problem": problem.to_json(), "prompt": "…"}
    assert read(row).problem == problem
    without = {"events": problem.to_json()["events"], "priorities": ["Chess"]}
    assert prove_day(read(without).problem, "d.txt")[0] == problem


def test_events_of_an_object_may_be_written_out_as_those_of_a_list():
    events = [
        {"name": "Band", "start": "10:00", "end": "11am"},
        {"name": "Art", "start": "9:00", "end": "10:30", "priority": True},
        ["Chess", "12:00", "13:00"],
    ]
    found = read({"events": events, "priorities": ["Chess"]}).problem
    assert [event.to_json() for event in found.events] == [
        ["Art", "09:00", "10:30"], ["Band", "10:00", "11:00"], ["Chess", "12:00", "13:00"],
    ]  # fmt: skip
    assert found.priorities == ("Chess", "Art")
    assert prove_day(found, "d.txt")[0].optimum == 300
    rules = [{"rule": "no_overlap"}, {"rule": "must_include", "event": "Band"}]
    ruled = read({"events": events, "rules": rules}).problem
    assert [event.name for event in prove_day(ruled, "d.txt")[1]] == ["Band", "Chess"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "B", "start": "9:00"}, 'd.txt, event 2 needs "end", a text'),
        ({"name": "B", "start": "9:00", "end": "24:00"}, "d.txt: '24:00' is not a time between"),
        ({"name": "A", "start": "9:00", "end": "9:30"}, "d.txt: two events have the same name"),
        ({"name": "<B>", "start": "9:00", "end": "9:30"}, "d.txt: event name '<B>' is blank, or"),
    ],
)
def test_an_event_of_an_object_that_is_none_is_named(changes, says):
    first = {"name": "A", "start": "9:00", "end": "10:00", "priority": True}
    assert says in refusal({"events": [first, changes]})
    assert 'needs "priorities", a JSON list' in refusal({"events": [first], "priorities": 3})
    assert "priority 'C' is not one of the events" in refusal(
        {"events": [first], "priorities": ["C"]}
    )


def test_a_priority_added_to_a_problem_of_ours_is_proven_anew():
    problem = small_day()
    found = read(problem.to_json(), "art").problem
    assert found.priorities == ("Chess", "Art")
    assert found.optimum == 0
    assert prove_day(found, "d.txt")[0].optimum == 240


def test_of_several_rows_the_first_or_the_one_named_is_read():
    other = Problem(small_day().events[:2], ())
    rows = [{"id": "a", "problem": small_day().to_json()}, {"id": "b", "problem": other.to_json()}]
    text = "\n".join(map(json.dumps, rows))
    assert read(text).problem == small_day()
    assert read(text).notes == ("d.txt has 2 rows; the first is asked, --id chooses another.",)
    assert read(text, row="b").problem == other
    assert refusal(text, row="bb") == "d.txt has no row with the id 'bb'; did you mean 'b'?"


def test_an_id_chooses_from_rows_and_is_refused_where_there_are_none():
    row = {"id": "a", "problem": small_day().to_json()}
    assert read(row, row="a").problem == small_day()
    assert refusal(row, row="aa") == "d.txt has no row with the id 'aa'; did you mean 'a'?"
    calendar = "BEGIN:VCALENDAR\nEND:VCALENDAR\n"
    for content in ("A 9-10", [["A", "9:00", "10:00"]], small_day().to_json(), calendar):
        assert refusal(content, row="a") == "--id chooses from rows of JSON, and d.txt is none"


def test_a_row_of_the_published_layout_is_read():
    row = {
        "index": 3,
        "events": [["B", "10:00", "11:00"], ["A", "09:00", "10:30"]],
        "priority_events": ["B"],
        "optimal_score": 120,
    }
    found = read(row).problem
    assert [event.name for event in found.events] == ["A", "B"]
    assert (found.priorities, found.optimum) == (("B",), 120)
    assert refusal({**row, "optimal_score": 7}).startswith('d.txt: "optimal_score" is 7')


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "d.txt is not valid JSON"),
        ('[{"name": "A",}]', "d.txt is not valid JSON"),
        ('{"id": 1}\n{oops\n', "d.txt:2 is not valid JSON"),
        ("[" * 100_000, "d.txt is not valid JSON"),
        ("{}", "d.txt: a problem needs \"events\""),
        ('{"events": [["A", "9", "10"]]}', "d.txt: '9' is not a time"),
        ('{"events": [["A\\u0007", "09:00", "10:00"]]}', "holds control characters"),
        ('{"events": [["A", "09:00", "10:00"]], "optimum": -1}', 'needs "optimum"'),
    ],
)  # fmt: skip
def test_json_that_is_no_day_is_one_sentence(text, says):
    assert says in refusal(text)


def test_an_optimum_that_is_not_the_proven_one_is_refused():
    record = {**small_day().to_json(), "optimum": 181}
    with pytest.raises(UserError, match='"optimum" is 181, the proven one 180'):
        prove_day(read(record).problem, "d.txt")


def test_rules_that_leave_no_schedule_are_one_sentence():
    record = {
        **small_day().to_json(),
        "rules": [
            {"rule": "no_overlap"},
            {"rule": "at_most_one", "group": ["Art", "Band"]},
            {"rule": "must_include", "event": "Echo"},
            {"rule": "must_include", "event": "Band"},
        ],
        "optimum": None,
    }
    with pytest.raises(UserError, match="no schedule keeps the rules of this day"):
        prove_day(read(record).problem, "d.txt")


def test_a_day_of_five_hundred_events_is_proven():
    lines = [
        f"E{i} {i // 60 + 8:02d}:{i % 60:02d}-{i // 60 + 9:02d}:{i % 60:02d}" for i in range(500)
    ]
    problem, best = prove_day(read("\n".join(lines)).problem, "d.txt")
    assert len(problem.events) == 500
    assert problem.optimum == 60 * len(best) == 540


# --- encodings -----------------------------------------------------------------------------


def test_a_date_or_zone_for_what_is_no_calendar_is_refused():
    assert refusal("A 9-10", date="2026-03-02") == (
        "--date chooses from a calendar, and d.txt is none"
    )
    assert refusal("[]", zone="UTC").startswith("--timezone chooses from a calendar")


def test_text_in_other_encodings_is_read_where_it_is_marked_and_else_refused():
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        assert names(read("Café 9-10".encode(encoding))) == ["Café"]
    assert refusal("A 9-10\nCafé 9-10".encode("latin-1")) == (
        "d.txt:2 is not UTF-8 text; save it as UTF-8"
    )
    assert refusal(b"\xff\xfeA") == "d.txt:1 is not UTF-16 text; save it as UTF-8"
