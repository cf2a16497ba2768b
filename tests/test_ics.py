"""Calendars as Google, Outlook and Apple export them, and what their events become."""

import json
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.clock import CLOCK
from data.common.errors import UserError
from eval.day.days import Wanted, read_day
from eval.day.ics import read_calendar

# Single events in UTC, recurring ones in their zone, the calendar's own zone beside them.
GOOGLE = """BEGIN:VCALENDAR
PRODID:-//Google Inc//Google Calendar 70.9054//EN
VERSION:2.0
CALSCALE:GREGORIAN
METHOD:PUBLISH
X-WR-CALNAME:jo@example.com
X-WR-TIMEZONE:Europe/Berlin
BEGIN:VTIMEZONE
TZID:Europe/Berlin
X-LIC-LOCATION:Europe/Berlin
BEGIN:DAYLIGHT
TZOFFSETFROM:+0100
TZOFFSETTO:+0200
TZNAME:GMT+2
DTSTART:19700329T020000
RRULE:FREQ=YEARLY;BYMONTH=3;BYDAY=-1SU
END:DAYLIGHT
BEGIN:STANDARD
TZOFFSETFROM:+0200
TZOFFSETTO:+0100
TZNAME:GMT+1
DTSTART:19701025T030000
RRULE:FREQ=YEARLY;BYMONTH=10;BYDAY=-1SU
END:STANDARD
END:VTIMEZONE
BEGIN:VEVENT
DTSTART:20260302T130000Z
DTEND:20260302T140000Z
DTSTAMP:20260228T101500Z
UID:1a@google.com
SEQUENCE:0
STATUS:CONFIRMED
SUMMARY:Interview\\, second round
TRANSP:OPAQUE
END:VEVENT
BEGIN:VEVENT
DTSTART;TZID=Europe/Berlin:20260105T090000
DTEND;TZID=Europe/Berlin:20260105T091500
RRULE:FREQ=WEEKLY;BYDAY=MO,WE
EXDATE;TZID=Europe/Berlin:20260309T090000
DTSTAMP:20260228T101500Z
UID:2b@google.com
SUMMARY:Standup
END:VEVENT
BEGIN:VEVENT
DTSTART;TZID=Europe/Berlin:20260304T103000
DTEND;TZID=Europe/Berlin:20260304T104500
RECURRENCE-ID;TZID=Europe/Berlin:20260304T090000
DTSTAMP:20260228T101500Z
UID:2b@google.com
SUMMARY:Standup (late)
END:VEVENT
BEGIN:VEVENT
DTSTART;TZID=Europe/Berlin:20260311T090000
DTEND;TZID=Europe/Berlin:20260311T091500
RECURRENCE-ID;TZID=Europe/Berlin:20260311T090000
DTSTAMP:20260228T101500Z
UID:2b@google.com
STATUS:CANCELLED
SUMMARY:Standup
END:VEVENT
BEGIN:VEVENT
DTSTART;VALUE=DATE:20260302
DTEND;VALUE=DATE:20260303
DTSTAMP:20260228T101500Z
UID:3c@google.com
SUMMARY:Carnival
END:VEVENT
END:VCALENDAR
"""

# Zones by their Windows names, with a VTIMEZONE of 1601; whole days as two midnights.
OUTLOOK = """BEGIN:VCALENDAR
PRODID:-//Microsoft Corporation//Outlook 16.0 MIMEDIR//EN
VERSION:2.0
METHOD:PUBLISH
X-MS-OLK-FORCEINSPECTOROPEN:TRUE
BEGIN:VTIMEZONE
TZID:W. Europe Standard Time
BEGIN:STANDARD
DTSTART:16011028T030000
RRULE:FREQ=YEARLY;BYDAY=-1SU;BYMONTH=10
TZOFFSETFROM:+0200
TZOFFSETTO:+0100
END:STANDARD
BEGIN:DAYLIGHT
DTSTART:16010325T020000
RRULE:FREQ=YEARLY;BYDAY=-1SU;BYMONTH=3
TZOFFSETFROM:+0100
TZOFFSETTO:+0200
END:DAYLIGHT
END:VTIMEZONE
BEGIN:VEVENT
CLASS:PUBLIC
CREATED:20260601T080000Z
DTEND;TZID="W. Europe Standard Time":20260706T120000
DTSTAMP:20260601T080000Z
DTSTART;TZID="W. Europe Standard Time":20260706T103000
PRIORITY:1
SEQUENCE:0
SUMMARY;LANGUAGE=de:Angebot für Müller & Söhne
TRANSP:OPAQUE
UID:040000008200E00074C5B7101A82E008
X-MICROSOFT-CDO-BUSYSTATUS:BUSY
X-MICROSOFT-CDO-IMPORTANCE:2
BEGIN:VALARM
TRIGGER:-PT15M
ACTION:DISPLAY
DESCRIPTION:Reminder
END:VALARM
END:VEVENT
BEGIN:VEVENT
DTSTART;TZID="W. Europe Standard Time":20260706T000000
DTEND;TZID="W. Europe Standard Time":20260707T000000
DTSTAMP:20260601T080000Z
PRIORITY:5
SUMMARY:Messe
UID:040000008200E00074C5B7101A82E009
X-MICROSOFT-CDO-ALLDAYEVENT:TRUE
END:VEVENT
BEGIN:VEVENT
DTSTART;TZID="W. Europe Standard Time":20260706T140000
DTEND;TZID="W. Europe Standard Time":20260706T150000
DTSTAMP:20260601T080000Z
CATEGORIES:Kunde,Extern
PRIORITY:5
SUMMARY:Call
UID:040000008200E00074C5B7101A82E010
END:VEVENT
END:VCALENDAR
"""

# Lengths instead of ends, folded lines, emoji, a birthday of 1604.
APPLE = """BEGIN:VCALENDAR
CALSCALE:GREGORIAN
PRODID:-//Apple Inc.//macOS 15.3//EN
VERSION:2.0
X-APPLE-CALENDAR-COLOR:#1BADF8
X-WR-CALNAME:Home
BEGIN:VEVENT
CREATED:20260101T090000Z
DTSTAMP:20260101T090000Z
DTSTART;TZID=America/New_York:20260510T180000
DURATION:PT1H30M
SEQUENCE:1
SUMMARY:Tanzkurs 💃🏽 für Anfänger und alle\\, die schon immer einmal tanzen wo
 llten
UID:A1
X-APPLE-TRAVEL-ADVISORY-BEHAVIOR:AUTOMATIC
END:VEVENT
BEGIN:VEVENT
DTSTAMP:20260101T090000Z
DTSTART;VALUE=DATE:16040510
RRULE:FREQ=YEARLY
SUMMARY:Oma
UID:A2
END:VEVENT
BEGIN:VEVENT
DTSTAMP:20260101T090000Z
DTSTART;TZID=America/New_York:20260510T223000
DTEND;TZID=America/New_York:20260511T003000
SUMMARY:Party
UID:A3
END:VEVENT
BEGIN:VEVENT
DTSTAMP:20260101T090000Z
DTSTART;TZID=America/New_York:20260510T200000
DTEND;TZID=America/New_York:20260511T000000
SUMMARY:Film
UID:A4
END:VEVENT
END:VCALENDAR
"""


def calendar(*events: str, head: str = "") -> str:
    """A calendar of VEVENTs, each given by its lines with blanks between them."""
    bodies = "".join(
        f"BEGIN:VEVENT\nUID:{i}\n" + "\n".join(event.split()) + "\nEND:VEVENT\n"
        for i, event in enumerate(events)
    )
    return f"BEGIN:VCALENDAR\nVERSION:2.0\n{head}{bodies}END:VCALENDAR\n"


def berlin(day: str, start: str, end: str, *more: str, name: str = "A") -> str:
    zone = "TZID=Europe/Berlin"
    lines = (f"DTSTART;{zone}:{day}T{start}00", f"DTEND;{zone}:{day}T{end}00", f"SUMMARY:{name}")
    return " ".join((*lines, *more))


def entries(text: str, day: str | None = None, zone: str | None = None) -> list[str]:
    """``HH:MM-HH:MM name`` of each event."""
    found, _ = read_calendar(text, "c.ics", day and date.fromisoformat(day), zone)
    clock = (*CLOCK, "24:00")
    return sorted(f"{clock[e.start]}-{clock[e.end]} {e.name}" for e in found)


def notes(text: str, day: str | None = None, zone: str | None = None) -> list[str]:
    return read_calendar(text, "c.ics", day and date.fromisoformat(day), zone)[1]


def refusal(text: str, day: str | None = None, zone: str | None = None) -> str:
    with pytest.raises(UserError) as refused:
        read_calendar(text, "c.ics", day and date.fromisoformat(day), zone)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# --- exports -------------------------------------------------------------------------------


def test_a_google_calendar_is_read_in_its_own_zone():
    assert entries(GOOGLE, "2026-03-02") == [
        "09:00-09:15 Standup",
        "14:00-15:00 Interview, second round",
    ]
    assert notes(GOOGLE, "2026-03-02") == [
        "Times are those of Europe/Berlin.",
        "Left out, all-day: Carnival.",
    ]


def test_google_exceptions_move_cancel_and_drop_occurrences():
    assert entries(GOOGLE, "2026-03-04") == ["10:30-10:45 Standup (late)"]
    assert "on 2026-03-09; the nearest" in refusal(GOOGLE, "2026-03-09")
    assert refusal(GOOGLE, "2026-03-11").endswith("Left out, cancelled: Standup")


def test_a_weekly_event_stays_on_its_hour_in_summer():
    assert entries(GOOGLE, "2026-07-01") == ["09:00-09:15 Standup"]
    assert entries(GOOGLE, "2026-07-01", "UTC") == ["07:00-07:15 Standup"]
    assert entries(GOOGLE, "2026-01-07", "UTC") == ["08:00-08:15 Standup"]


def test_an_outlook_calendar_with_windows_zones_and_categories_is_read():
    assert entries(OUTLOOK) == ["10:30-12:00 Angebot für Müller & Söhne", "14:00-15:00 Call"]
    assert notes(OUTLOOK) == [
        "Asked is Monday, 2026-07-06, the only day with events.",
        "Times are those of W. Europe Standard Time.",
        "Left out, all-day: Messe.",
    ]
    assert "08:30-10:00 Angebot für Müller & Söhne" in entries(OUTLOOK, zone="UTC")
    day = read_day(OUTLOOK.encode(), "c.ics", Wanted())
    assert day.problem.priorities == ("Angebot für Müller & Söhne",)
    day = read_day(OUTLOOK.encode(), "c.ics", Wanted(("kunde",)))
    assert day.problem.priorities == ("Angebot für Müller & Söhne", "Call")


def test_an_apple_calendar_with_durations_folds_and_birthdays_is_read():
    dance = "Tanzkurs 💃🏽 für Anfänger und alle, die schon immer einmal tanzen wollten"
    assert entries(APPLE) == [f"18:00-19:30 {dance}", "20:00-24:00 Film"]
    assert notes(APPLE)[2:] == ["Left out, all-day: Oma.", "Left out, over midnight: Party."]
    day = read_day(APPLE.encode(), "c.ics", Wanted())
    assert [event.to_json()[2] for event in day.problem.events] == ["19:30", "23:59"]
    assert "Ends at 24:00, asked as 23:59: Film." in day.notes


def test_the_morning_after_leaves_out_what_began_the_day_before():
    text = calendar(
        "DTSTART:20260510T223000 DTEND:20260511T003000 SUMMARY:Party",
        "DTSTART:20260511T090000 DTEND:20260511T100000 SUMMARY:Work",
    )
    assert entries(text, "2026-05-11") == ["09:00-10:00 Work"]
    assert notes(text, "2026-05-11") == ["Left out, over midnight: Party."]


# --- zones and clocks ----------------------------------------------------------------------


def test_floating_times_stand_as_they_are():
    text = calendar("DTSTART:20260302T090000 DTEND:20260302T100000 SUMMARY:A")
    assert entries(text) == entries(text, zone="Asia/Tokyo") == ["09:00-10:00 A"]
    assert len(notes(text)) == 1


def test_utc_alone_is_read_as_utc_unless_a_zone_is_asked_for():
    text = calendar("DTSTART:20260302T233000Z DTEND:20260302T235000Z SUMMARY:A")
    assert entries(text) == ["23:30-23:50 A"]
    assert "Times are those of UTC." in notes(text)
    assert entries(text, "2026-03-03", "Asia/Tokyo") == ["08:30-08:50 A"]


def test_without_a_zone_of_its_own_the_one_that_most_events_name_is_read():
    text = calendar(
        berlin("20260302", "0900", "1000"),
        berlin("20260302", "1100", "1200", name="B"),
        "DTSTART;TZID=America/New_York:20260302T090000 DURATION:PT1H SUMMARY:C",
        *("DTSTART:20260302T050000Z DURATION:PT5M SUMMARY:D" for _ in range(3)),
    )
    assert entries(text)[:3] == ["06:00-06:05 D"] * 3
    assert entries(text)[3:] == ["09:00-10:00 A", "11:00-12:00 B", "15:00-16:00 C"]


def test_a_zone_of_the_files_own_is_followed():
    own = (
        "BEGIN:VTIMEZONE\nTZID:Customized Time Zone\nBEGIN:STANDARD\nDTSTART:16010101T000000\n"
        "TZOFFSETFROM:+0530\nTZOFFSETTO:+0530\nEND:STANDARD\nEND:VTIMEZONE\n"
    )
    event = 'DTSTART;TZID="Customized_Time_Zone":20260302T090000 DURATION:PT1H SUMMARY:A'
    text = calendar(event, head=own).replace("Customized_Time_Zone", "Customized Time Zone")
    assert entries(text) == ["09:00-10:00 A"]
    assert entries(text, zone="UTC") == ["03:30-04:30 A"]
    # Another file may call another zone so.
    other = text.replace("+0530", "-0300")
    assert entries(other, zone="UTC") == ["12:00-13:00 A"]


def test_an_unknown_zone_is_said_and_its_times_stand():
    text = calendar("DTSTART;TZID=Mars/Olympus:20260302T090000 DURATION:PT1H SUMMARY:A")
    assert entries(text) == ["09:00-10:00 A"]
    assert "Time zone Mars/Olympus is unknown; its times stand as they are." in notes(text)


@pytest.mark.parametrize("zone", ["Europe", "../../etc/passwd", "Europe/Berln", "x" * 5000, ""])
def test_a_zone_that_is_none_is_refused(zone):
    text = calendar(berlin("20260302", "0900", "1000"))
    assert refusal(text, zone=zone).startswith("--timezone: ")
    assert "did you mean 'Europe/Berlin'" in refusal(text, zone="Europe/Berln")


@pytest.mark.parametrize("zone", ["Europe", "x" * 5000])
def test_a_zone_in_a_file_that_names_a_folder_is_a_broken_file(zone):
    text = calendar(f"DTSTART;TZID={zone}:20260302T090000 SUMMARY:A")
    assert refusal(text).startswith("c.ics is a broken calendar")


def test_events_while_the_clocks_change_are_left_out_and_the_others_kept():
    spring = calendar(
        berlin("20260329", "0130", "0330", name="Night"),
        berlin("20260329", "0030", "0130", name="Before"),
        berlin("20260329", "0300", "0400", name="After"),
        berlin("20260329", "0900", "1000", name="Church"),
    )
    assert entries(spring) == ["00:30-01:30 Before", "03:00-04:00 After", "09:00-10:00 Church"]
    assert "Left out, while the clocks change: Night." in notes(spring)
    autumn = calendar(
        "DTSTART:20261025T003000Z DTEND:20261025T004500Z SUMMARY:First",  # 02:30 in summer
        "DTSTART:20261025T013000Z DTEND:20261025T014500Z SUMMARY:Second",  # 02:30 once more
        berlin("20261025", "0230", "0330", name="Both"),
        berlin("20261025", "0900", "1000", name="Church"),
    )
    assert entries(autumn) == ["02:30-02:45 First", "09:00-10:00 Church"]
    assert "Left out, while the clocks change: Second, Both." in notes(autumn)


# --- recurrence ----------------------------------------------------------------------------


def daily(*more: str) -> str:
    return calendar(berlin("20260302", "0900", "1000", *more))


def days_of(text: str) -> list[int]:
    """The days of March 2026 on which a calendar has an event to ask."""
    found = []
    for day in range(1, 32):
        try:
            entries(text, f"2026-03-{day:02d}")
        except UserError:
            continue
        found.append(day)
    return found


@pytest.mark.parametrize(
    ("lines", "days"),
    [
        ("RRULE:FREQ=DAILY;COUNT=3", [2, 3, 4]),
        ("RRULE:FREQ=DAILY;INTERVAL=10", [2, 12, 22]),
        ("RRULE:FREQ=DAILY;UNTIL=20260305T080000Z", [2, 3, 4, 5]),  # 09:00 in Berlin, included
        ("RRULE:FREQ=DAILY;UNTIL=20260305T075959Z", [2, 3, 4]),
        ("RRULE:FREQ=DAILY;UNTIL=20260304", [2, 3, 4]),
        ("RRULE:FREQ=DAILY;UNTIL=20260304T090000", [2, 3, 4]),
        ("RRULE:FREQ=WEEKLY;BYDAY=MO,FR;COUNT=4", [2, 6, 9, 13]),
        ("RRULE:FREQ=MONTHLY;BYDAY=1MO,-1TU", [2, 31]),
        ("RRULE:FREQ=DAILY;COUNT=4 EXDATE;TZID=Europe/Berlin:20260303T090000", [2, 4, 5]),
        ("RRULE:FREQ=DAILY;COUNT=4 EXDATE:20260303T080000Z,20260304T080000Z", [2, 5]),
        ("RRULE:FREQ=DAILY;COUNT=4 EXDATE;VALUE=DATE:20260302", [3, 4, 5]),
        ("RDATE;TZID=Europe/Berlin:20260310T090000,20260320T140000", [2, 10, 20]),
        ("RRULE:FREQ=DAILY;COUNT=2 RDATE:20260303T080000Z", [2, 3]),
    ],
)
def test_recurrences_are_followed(lines, days):
    text = daily(*lines.split())
    assert days_of(text) == days
    assert entries(text, f"2026-03-{days[-1]:02d}") in (["09:00-10:00 A"], ["14:00-15:00 A"])


def test_a_rule_is_followed_across_the_change_of_clocks():
    text = daily("RRULE:FREQ=DAILY")
    assert entries(text, "2026-03-28", "UTC") == ["08:00-09:00 A"]
    assert entries(text, "2026-03-30", "UTC") == ["07:00-08:00 A"]


def test_a_rule_without_an_end_is_followed_for_decades():
    text = daily("RRULE:FREQ=DAILY")
    assert entries(text, "2199-01-01") == ["09:00-10:00 A"]
    assert refusal(text, "2200-01-01") == "--date 2200-01-01 is not between 1600 and 2199"


@pytest.mark.parametrize(
    "rule",
    [
        "FREQ=NEVER",
        "INTERVAL=2",
        "FREQ=DAILY;INTERVAL=0",
        "FREQ=SECONDLY",
        "FREQ=MINUTELY;INTERVAL=5",
        "FREQ=HOURLY;INTERVAL=48",
        "FREQ=DAILY;BYHOUR=9,10,11;BYMINUTE=0,5,10,15,20,25,30,35,40",
        "FREQ=MONTHLY;BYDAY=9MO",
        "FREQ=DAILY;BYHOUR=99",
        "FREQ=DAILY;BYDAY=XX",
        "FREQ=DAILY;FOO=1",
        "nonsense",
    ],
)
def test_a_rule_that_cannot_be_followed_leaves_its_event_out(rule):
    text = calendar(
        berlin("20260302", "0900", "1000", f"RRULE:{rule}"),
        berlin("20260302", "1100", "1200", name="B"),
    )
    assert entries(text) == ["11:00-12:00 B"]
    assert "Left out, with a recurrence that cannot be read: A." in notes(text)


def test_a_rule_that_never_comes_true_ends_with_its_first_occurrence():
    text = daily("RRULE:FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30")
    assert entries(text) == ["09:00-10:00 A"]
    assert "on 2026-03-03; the nearest dates with some are 2026-03-02" in refusal(
        text, "2026-03-03"
    )


def test_every_weekday_of_a_leap_year_is_the_right_one():
    for day in range(1, 29):
        text = calendar(berlin("20240101", "0900", "1000", "RRULE:FREQ=WEEKLY;BYDAY=TU,TH"))
        when = date(2028, 2, day)
        if when.weekday() in (1, 3):
            assert entries(text, str(when)) == ["09:00-10:00 A"]
        else:
            assert "has no events" in refusal(text, str(when))
    assert entries(daily("RRULE:FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29"), "2028-02-29")


def test_a_newer_version_replaces_an_older_one_and_the_same_event_twice_is_one():
    text = calendar(
        berlin("20260302", "0900", "1000", "SEQUENCE:1"),
        berlin("20260302", "0800", "1000", "SEQUENCE:0", name="Old"),
        berlin("20260302", "1500", "1600", name="B"),
        berlin("20260302", "1500", "1600", name="B"),
    )
    same = text.replace("UID:1", "UID:0").replace("UID:3", "UID:2")
    assert entries(same) == ["09:00-10:00 A", "15:00-16:00 B"]


# --- what cannot be asked ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ("DTSTART:20260302T090000 SUMMARY:A", "without length"),
        ("DTSTART:20260302T090000 DTEND:20260302T090000 SUMMARY:A", "without length"),
        ("DTSTART:20260302T090010 DTEND:20260302T090050 SUMMARY:A", "without length"),
        ("DTSTART:20260302T090000 DTEND:20260302T080000 SUMMARY:A", "ending before its start"),
        ("DTSTART;VALUE=DATE:20260302 SUMMARY:A", "all-day"),
        ("DTSTART;VALUE=DATE:20260228 DTEND;VALUE=DATE:20260305 SUMMARY:A", "all-day"),
        ("DTSTART:20260228T090000 DTEND:20260303T080000 SUMMARY:A", "over midnight"),
        ("DTSTART:20260302T090000 DURATION:PT1H STATUS:CANCELLED SUMMARY:A", "cancelled"),
        ("SUMMARY:A", "without times that can be read"),
        ("DTSTART:soon DURATION:PT1H SUMMARY:A", "without times that can be read"),
        ("DTSTART:20260302T090000 DURATION:long SUMMARY:A", "without times that can be read"),
        (
            "DTSTART:20260302T090000 DTEND;VALUE=DATE:20260302 SUMMARY:A",
            "without times that can be read",
        ),
        ("DTSTART:00010101T000000Z DURATION:PT1H SUMMARY:A", "not between 1600 and 2199"),
        (
            "DTSTART:20260302T090000 DURATION:PT1H EXRULE:FREQ=DAILY SUMMARY:A",
            "with a recurrence of a form that is not followed",
        ),
    ],
)
def test_what_is_no_event_of_the_day_is_left_out_with_its_reason(event, reason):
    text = calendar(event, "DTSTART:20260302T110000 DURATION:PT1H SUMMARY:B")
    assert entries(text, "2026-03-02") == ["11:00-12:00 B"]
    assert notes(text, "2026-03-02") == [f"Left out, {reason}: A."]
    assert refusal(calendar(event), "2026-03-02").endswith(f"Left out, {reason}: A")


def test_an_end_at_midnight_is_of_its_day():
    text = calendar("DTSTART:20260302T230000 DTEND:20260303T000000 SUMMARY:A")
    assert entries(text) == ["23:00-24:00 A"]
    assert "on 2026-03-03" in refusal(text, "2026-03-03")


def test_a_day_without_events_names_the_nearest_that_have_some():
    text = calendar(
        *(berlin(f"202603{d:02d}", "0900", "1000", name=f"E{d}") for d in (1, 5, 9, 12, 20, 30))
    )
    assert refusal(text, "2026-03-10") == (
        "c.ics has no events that can be asked on 2026-03-10; the nearest dates with some are "
        "2026-03-01, 2026-03-05, 2026-03-09, 2026-03-12, 2026-03-20"
    )
    far = daily("RRULE:FREQ=WEEKLY")
    assert "2027-05-24, 2027-05-31" in refusal(far, "2027-05-27")


def test_without_a_date_the_first_day_with_events_is_asked_and_said():
    text = calendar(
        "DTSTART;VALUE=DATE:20260101 SUMMARY:New year",
        berlin("20260309", "0900", "1000", name="Late"),
        berlin("20260302", "0900", "1000", "RRULE:FREQ=DAILY", "EXDATE:20260302T080000Z"),
    )
    assert entries(text) == ["09:00-10:00 A"]
    assert notes(text)[0] == "Asked is Tuesday, 2026-03-03, the first day with events."


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("BEGIN:VCALENDAR\nVERSION:2.0\nEND:VCALENDAR\n", "a calendar without events"),
        (GOOGLE[:900], "a broken calendar (its end is missing)"),
        (GOOGLE[:-20], "a broken calendar"),
        ("BEGIN:VCALENDAR\nEND:VCALENDAR\nEND:VEVENT\n", "a broken calendar"),
        ("BEGIN:VCALENDAR\nthis is no line\nEND:VCALENDAR\n", "a broken calendar"),
        ("BEGIN:VCARD\nFN:Jo\nEND:VCARD\n", "a calendar without events"),
        ("BEGIN:VCALENDAR", "a broken calendar"),
    ],
)
def test_a_broken_or_empty_file_is_one_sentence(text, says):
    assert refusal(text).startswith(f"c.ics is {says}")


def test_a_calendar_that_cancels_has_nothing_to_ask():
    text = calendar(berlin("20260302", "0900", "1000"), head="METHOD:CANCEL\n")
    assert refusal(text, "2026-03-02").endswith("that can be asked. Left out, cancelled: A")


def test_five_hundred_events_with_recurrences_are_read():
    text = calendar(
        *(
            berlin("20200106", "0900", "1000", "RRULE:FREQ=WEEKLY;BYDAY=MO", name=f"E{i}")
            for i in range(500)
        )
    )
    assert len(entries(text, "2026-03-02")) == 500


def test_line_ends_of_windows_and_a_mark_at_the_start_do_no_harm():
    day = read_day(GOOGLE.encode(), "c.ics", Wanted(date=date(2026, 3, 2)))
    for other in (
        GOOGLE.replace("\n", "\r\n").encode("utf-8-sig"),
        GOOGLE.encode("utf-16"),
        GOOGLE.encode() + b"\n\n",
    ):
        assert read_day(other, "c.ics", Wanted(date=date(2026, 3, 2))) == day
    with pytest.raises(UserError, match=r"c.ics:29 is not UTF-8 text; save it as UTF-8"):
        read_day(OUTLOOK.encode("latin-1"), "c.ics", Wanted())


LINES = st.sampled_from(
    [
        *(line for text in (GOOGLE, OUTLOOK, APPLE) for line in text.splitlines()),
        "DTSTART:", "DTEND;TZID=:20260302T0900", "DTSTART:99991231T235959Z", "DURATION:P99999W",
        "DURATION:-PT1H", "RRULE:FREQ=YEARLY;BYWEEKNO=99", "RRULE:FREQ=DAILY;COUNT=x",
        "RRULE:FREQ=DAILY;UNTIL=never", "EXDATE:", "EXDATE:now", "RDATE;VALUE=PERIOD:x/y",
        "RDATE;VALUE=PERIOD:20260302T100000Z/PT1H", "RECURRENCE-ID:then", "PRIORITY:high",
        "SEQUENCE:-3", "CATEGORIES:", "SUMMARY:", "STATUS:", "UID:", "X-WR-TIMEZONE:Nowhere",
        "RECURRENCE-ID;RANGE=THISANDFUTURE:20260302T090000", "DTSTART;VALUE=TIME:100000",
        "DTEND;VALUE=PERIOD:20260302T100000Z/PT1H", "BEGIN:VEVENT", "END:VEVENT",
    ]
)  # fmt: skip


@given(st.lists(LINES, max_size=25), st.sampled_from([None, "2026-03-02", "2026-07-06"]))
def test_whatever_lines_a_calendar_has_it_is_answered_or_refused_in_a_sentence(lines, day):
    body = "\n".join(lines)
    text = f"BEGIN:VCALENDAR\nBEGIN:VEVENT\n{body}\nEND:VEVENT\nEND:VCALENDAR\n"
    _answered_or_refused(text, day)


@given(st.sampled_from([GOOGLE, OUTLOOK, APPLE]), st.data())
def test_a_damaged_export_is_answered_or_refused_in_a_sentence(text, data):
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(16, len(text) - 1))
        cut = data.draw(st.integers(0, 12))
        text = text[:at] + data.draw(st.text("0Z:;=\n,TFREQ-", max_size=6)) + text[at + cut :]
    _answered_or_refused(text, data.draw(st.sampled_from([None, "2026-03-02", "2026-05-10"])))


def _answered_or_refused(text: str, day: str | None) -> None:
    wanted = Wanted(date=day and date.fromisoformat(day))
    said = ""
    try:
        found = read_day(text.encode(), "c.ics", wanted)
        found.problem.check()
        json.dumps(found.problem.to_json())
        said = "".join(found.notes)
    except UserError as refused:
        said = str(refused)
    assert "\n" not in said
