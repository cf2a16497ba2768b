"""Days as users give them: typed lines and JSON."""

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

ROW = {"id": "a", "problem": small_day().to_json()}
PUBLISHED = {
    "index": 3, "events": [["B", "10:00", "11:00"], ["A", "09:00", "10:30"]],
    "priority_events": ["B"], "optimal_score": 120,
}  # fmt: skip


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


def events(day) -> list[str]:
    """``HH:MM-HH:MM name`` of each event, priorities with ``!``."""
    marked = day.problem.priorities
    return [
        f"{CLOCK[e.start]}-{CLOCK[e.end]} {e.name}{'!' * (e.name in marked)}"
        for e in day.problem.events
    ]


# --- typed lines -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "name", "start", "end", "priority"),
    [
        ("Standup 09:00-09:30", "Standup", "09:00", "09:30", False),
        ("Standup 09:00-09:30 !", "Standup", "09:00", "09:30", True),
        ("  Standup: 9:00 – 9:30 ", "Standup", "09:00", "09:30", False),
        ("- Standup (09:00 - 09:30)", "Standup", "09:00", "09:30", False),
        ("09:00 to 09:30, Standup !", "Standup", "09:00", "09:30", True),
        ("Standup 9.00-9h30", "Standup", "09:00", "09:30", False),
        ("Lunch 12-1pm", "Lunch", "12:00", "13:00", False),
        ("Lunch 11-1pm", "Lunch", "11:00", "13:00", False),
        ("Nap 12am-1am", "Nap", "00:00", "01:00", False),
        ("Sprint 12-13 review 9-10", "Sprint 12-13 review", "09:00", "10:00", False),
        ("Jo's 1:1, part 2 9-10", "Jo's 1:1, part 2", "09:00", "10:00", False),
        ("Café Ü 💃 9-10", "Café Ü 💃", "09:00", "10:00", False),
    ],
)
def test_a_line_is_read_as_people_write_it(line, name, start, end, priority):
    entry = typed_entry(line, "x:1")
    assert (entry.name, CLOCK[entry.start], CLOCK[entry.end]) == (name, start, end)
    assert entry.priority is priority


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("Standup", "'Standup' is not an event"),
        ("Standup 09:00", "is not an event"),
        ("x" * 2000 + " 9-10", "is not an event"),
        ("Standup 9:00-24:01", "'24:01' is not a time"),
        ("Standup 9:60-10:00", "'9:60' is not a time"),
        ("Standup 13-14pm", "'14pm' is not a time"),
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


@given(st.text())
def test_whatever_is_typed_is_read_or_refused_in_a_sentence(text):
    content = text.encode(errors="surrogatepass")
    try:
        read(content).problem.check()
    except UserError:
        refusal(content)


def test_a_day_of_five_hundred_events_is_proven():
    lines = [
        f"E{i} {i // 60 + 8:02d}:{i % 60:02d}-{i // 60 + 9:02d}:{i % 60:02d}" for i in range(500)
    ]
    problem, best = prove_day(read("\n".join(lines)).problem, "d.txt")
    assert problem.optimum == 60 * len(best) == 540


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_read_in_marked_encodings_and_else_refused_with_its_line(encoding):
    assert events(read("Café 9-10".encode(encoding))) == ["09:00-10:00 Café"]
    assert refusal("A 9-10\nCafé 9-10".encode("latin-1")).startswith("d.txt:2 is not UTF-8")
    assert refusal(b"\xff\xfeA").startswith("d.txt:1 is not UTF-16")


# --- priorities and names --------------------------------------------------------------------


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
        "a <b> & c", "</name><|end|>", "two\nlines\u2028here", "  ", "\ud800", "x" * 100,
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
    problem, best = prove_day(read(items).problem, "d.txt")
    assert all(event_from_json(event.to_json()) == event for event in problem.events)
    assert all(len(event.name) <= MOST_NAME + 4 for event in problem.events)
    assert all(cleaned(cleaned(name)) == cleaned(name) for name in given_names)
    assert prompt(problem).count("\n- ") >= len(given_names)
    assert verify(problem, answer(best, None)).status is Status.OPTIMAL


# --- JSON ------------------------------------------------------------------------------------


def test_a_list_of_events_is_read():
    day = read(
        [
            {"name": "A", "start": "9:00", "end": "10:00", "priority": True},
            {"name": "B", "start": "9.30", "end": "1pm"},
            ["C", "12:00", "24:00"],
        ]
    )
    assert events(day) == ["09:00-10:00 A!", "09:30-13:00 B", "12:00-23:59 C"]


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ({"name": "A", "start": "9:00"}, '"end"'),
        ({"name": "A", "start": 9, "end": "10:00"}, '"start"'),
        ({"name": "A", "start": "soon", "end": "10:00"}, "\"start\" is 'soon'"),
        ({"name": "A", "start": "9:00", "end": "10:00", "prioritty": True}, "mean 'priority'?"),
        ({"name": "A", "start": "9:00", "end": "10:00", "priority": "yes"}, "true or false"),
        ("A 9-10", 'must be {"name", "start", "end", "priority"}'),
    ],
)
def test_an_event_of_a_list_that_is_none_is_named_by_its_place(item, says):
    said = refusal([["A", "9:00", "10:00"], item])
    assert said.startswith("d.txt, event 2")
    assert says in said


def test_a_problem_of_ours_or_the_published_layout_is_read_as_it_is_alone_and_in_a_row():
    problem = small_day()
    assert read(problem.to_json()).problem == read({**ROW, "prompt": "…"}).problem == problem
    without = {"events": problem.to_json()["events"], "priorities": ["Chess"]}
    assert prove_day(read(without).problem, "d.txt")[0] == problem
    published = read(PUBLISHED)
    assert events(published) == ["09:00-10:30 A", "10:00-11:00 B!"]
    assert published.problem.optimum == 120


def test_a_priority_added_to_a_problem_of_ours_is_proven_again():
    problem = read(small_day().to_json(), "art").problem
    assert (problem.priorities, problem.optimum) == (("Chess", "Art"), 0)
    assert prove_day(problem, "d.txt")[0].optimum == 240


def test_events_of_a_problem_may_be_written_out_as_those_of_a_list():
    band = {"name": "Band", "start": "10:00", "end": "11am"}
    art = {"name": "Art", "start": "9:00", "end": "10:30", "priority": True}
    given_events = [band, art, ["Chess", "12:00", "13:00"]]
    day = read({"events": given_events, "priorities": ["Chess"]})
    assert events(day) == ["09:00-10:30 Art!", "10:00-11:00 Band", "12:00-13:00 Chess!"]
    rules = [{"rule": "no_overlap"}, {"rule": "must_include", "event": "Band"}]
    ruled = read({"events": given_events, "rules": rules}).problem
    assert [event.name for event in prove_day(ruled, "d.txt")[1]] == ["Band", "Chess"]


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"events": [{"name": "B", "start": "9:00"}]}, 'd.txt, event 1 needs "end"'),
        ({"events": [{"name": "B", "start": "9:00", "end": "24:00"}]}, "'24:00' is not a time"),
        ({"events": [{"name": "A", "start": "9:00", "end": "9:30"}] * 2}, "the same name"),
        ({"events": [["A", "9", "10"]]}, "d.txt: '9' is not a time"),
        ({"events": [["A\u0007", "09:00", "10:00"]]}, "control characters"),
        ({"events": [["A", "09:00", "10:00"]], "priorities": 3}, '"priorities"'),
        ({"events": [["A", "09:00", "10:00"]], "optimum": -1}, '"optimum"'),
        ({}, '"events"'),
        ({**PUBLISHED, "optimal_score": 7}, 'd.txt: "optimal_score" is 7'),
        ("{", "d.txt is not valid JSON"),
        ('{"id": 1}\n{oops\n', "d.txt:2 is not valid JSON"),
        ("[" * 100_000, "d.txt is not valid JSON"),
    ],
)
def test_json_that_is_no_day_is_one_sentence(record, says):
    assert says in refusal(record)


def test_of_several_rows_the_first_or_the_one_named_is_read():
    other = Problem(small_day().events[:2], ())
    text = "\n".join(map(json.dumps, (ROW, {"id": "b", "problem": other.to_json()})))
    assert read(text).problem == small_day()
    assert "2 rows" in read(text).notes[0]
    assert read(text, row="b").problem == other
    assert read(ROW, row="a").problem == small_day()
    assert refusal(text, row="bb") == "d.txt has no row with the id 'bb'; did you mean 'b'?"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"optimum": 181}, '"optimum" is 181, the proven one 180'),
        ({"optimum": None, "rules": [
            {"rule": "no_overlap"}, {"rule": "must_include", "event": "Art"},
            {"rule": "must_include", "event": "Band"},
        ]}, "no schedule keeps the rules"),
    ],
)  # fmt: skip
def test_a_problem_that_cannot_be_proven_as_given_is_refused(changes, says):
    with pytest.raises(UserError, match=says):
        prove_day(read({**small_day().to_json(), **changes}).problem, "d.txt")


@pytest.mark.parametrize("content", ["A 9-10", "[]", json.dumps(small_day().to_json())])
@pytest.mark.parametrize(
    ("wanted", "flag"),
    [({"date": "2026-03-02"}, "--date"), ({"zone": "UTC"}, "--timezone"), ({"row": "a"}, "--id")],
)
def test_a_choice_that_the_content_does_not_offer_is_refused(content, wanted, flag):
    assert refusal(content, **wanted).startswith(f"{flag} chooses from ")
