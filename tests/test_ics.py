"""Calendars as Google, Outlook and Apple export them, and what their events become."""

import io
import json
import zipfile
from contextlib import suppress
from datetime import date
from pathlib import Path

import pytest
from running import CASES, needs_cases, refusal_of, within

from data.clock import CLOCK
from data.common.errors import UserError
from eval.day.days import read_day
from eval.day.ics import read_calendar

HERE = Path(__file__).parent
# Google: single events in UTC, recurring ones in their zone. Outlook: zones by their Windows names,
# with a VTIMEZONE of 1601; whole days as two midnights. Apple: lengths instead of ends, folded
# lines, a birthday of 1604.
GOOGLE, OUTLOOK, APPLE = (
    (HERE / "calendars" / f"{name}.ics").read_text() for name in ("google", "outlook", "apple")
)


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


def daily(*more: str) -> str:
    return calendar(berlin("20260302", "0900", "1000", *more))


def entries(text: str, day: str | None = None, zone: str | None = None) -> list[str]:
    """``HH:MM-HH:MM name`` of each event."""
    found, _ = read_calendar(text, "c.ics", day and date.fromisoformat(day), zone)
    clock = (*CLOCK, "24:00")
    return sorted(f"{clock[e.start]}-{clock[e.end]} {e.name}" for e in found)


def notes(text: str, day: str | None = None, zone: str | None = None) -> list[str]:
    return read_calendar(text, "c.ics", day and date.fromisoformat(day), zone)[1]


def refusal(text: str, day: str | None = None, zone: str | None = None) -> str:
    return refusal_of(lambda: entries(text, day, zone))


# --- exports ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("day", "zone", "expected"),
    [
        ("2026-03-02", None, ["09:00-09:15 Standup", "14:00-15:00 Interview, second round"]),
        ("2026-03-04", None, ["10:30-10:45 Standup (late)"]),
        ("2026-07-01", None, ["09:00-09:15 Standup"]),
        ("2026-07-01", "UTC", ["07:00-07:15 Standup"]),
        ("2026-01-07", "UTC", ["08:00-08:15 Standup"]),
    ],
)
def test_a_google_calendar_is_read_with_moved_occurrences_and_in_summer(day, zone, expected):
    assert entries(GOOGLE, day, zone) == expected


def test_google_drops_and_cancels_occurrences():
    assert notes(GOOGLE, "2026-03-02")[0] == "Times are those of Europe/Berlin."
    assert notes(GOOGLE, "2026-03-02")[1] == "Left out, all-day: Carnival."
    assert "on 2026-03-09; the nearest" in refusal(GOOGLE, "2026-03-09")
    assert refusal(GOOGLE, "2026-03-11").endswith("Left out, cancelled: Standup")


def test_an_outlook_calendar_with_windows_zones_and_categories_is_read():
    offer = "Angebot für Müller & Söhne"
    assert entries(OUTLOOK) == [f"10:30-12:00 {offer}", "14:00-15:00 Call"]
    assert notes(OUTLOOK) == [
        "Asked is Monday, 2026-07-06, the first day with events.",
        "Times are those of W. Europe Standard Time.",
        "Left out, all-day: Messe.",
    ]
    assert f"08:30-10:00 {offer}" in entries(OUTLOOK, zone="UTC")
    for priorities, marked in (((), (offer,)), (("kunde",), (offer, "Call"))):
        day = read_day(OUTLOOK.encode(), "c.ics", priorities)
        assert day.problem.priorities == marked


def test_an_apple_calendar_with_durations_folds_and_birthdays_is_read():
    dance = "Tanzkurs 💃🏽 für Anfänger und alle, die schon immer einmal tanzen wollten"
    assert entries(APPLE) == [f"18:00-19:30 {dance}", "20:00-24:00 Film"]
    assert notes(APPLE)[2:] == ["Left out, all-day: Oma.", "Left out, over midnight: Party."]


@needs_cases
def test_calendars_that_people_met_are_read_as_they_should_be():
    folder = CASES / "calendars"
    for case in json.loads((folder / "expected.json").read_text()):
        for day, expected in case["days"].items():
            chosen = (), date.fromisoformat(day), case["zone"]
            found = read_day((folder / case["file"]).read_bytes(), case["file"], *chosen)
            assert [e.to_json() for e in found.problem.events] == expected, case["file"]


# --- zones and clocks ------------------------------------------------------------------------


def test_floating_times_stand_and_utc_is_read_as_utc_unless_a_zone_is_asked_for():
    floating = calendar("DTSTART:20260302T090000 DTEND:20260302T100000 SUMMARY:A")
    assert entries(floating) == entries(floating, zone="Asia/Tokyo") == ["09:00-10:00 A"]
    text = calendar("DTSTART:20260302T233000Z DTEND:20260302T235000Z SUMMARY:A")
    assert entries(text) == ["23:30-23:50 A"]
    assert "Times are those of UTC." in notes(text)
    assert entries(text, "2026-03-03", "Asia/Tokyo") == ["08:30-08:50 A"]


def test_without_a_zone_of_its_own_the_one_that_most_events_name_is_read():
    text = calendar(
        berlin("20260302", "0900", "1000"),
        berlin("20260302", "1100", "1200", name="B"),
        "DTSTART;TZID=America/New_York:20260302T090000 DURATION:PT1H SUMMARY:C",
        "DTSTART:20260302T050000Z DURATION:PT5M SUMMARY:D",
    )
    expected = ["06:00-06:05 D", "09:00-10:00 A", "11:00-12:00 B", "15:00-16:00 C"]
    assert entries(text) == expected


def test_a_zone_of_the_files_own_is_followed_and_forgotten_with_the_file():
    own = (
        "BEGIN:VTIMEZONE\nTZID:Office\nBEGIN:STANDARD\nDTSTART:16010101T000000\n"
        "TZOFFSETFROM:+0530\nTZOFFSETTO:+0530\nEND:STANDARD\nEND:VTIMEZONE\n"
    )
    text = calendar("DTSTART;TZID=Office:20260302T090000 DURATION:PT1H SUMMARY:A", head=own)
    assert entries(text, zone="UTC") == ["03:30-04:30 A"]
    assert entries(text.replace("+0530", "-0300"), zone="UTC") == ["12:00-13:00 A"]


def test_an_unknown_zone_is_said_and_its_times_stand():
    text = calendar("DTSTART;TZID=Mars/Olympus:20260302T090000 DURATION:PT1H SUMMARY:A")
    assert entries(text) == ["09:00-10:00 A"]
    assert any("Mars/Olympus is unknown" in note for note in notes(text))


@pytest.mark.parametrize(
    ("zone", "hour"),
    [("+02:00", 7), ("UTC+2", 7), ("GMT-0330", 12), ('"UTC+05:30"', 3), ("Z", 9),
     ("+02:00;X-A=B", 7), ("tzone://Microsoft/Utc", 9)],
)  # fmt: skip
def test_a_zone_may_be_spelt_as_an_offset(zone, hour):
    text = calendar(
        f"DTSTART;TZID={zone}:20260302T090000 DURATION:PT1H RRULE:FREQ=DAILY "
        f"EXDATE;TZID={zone}:20260303T090000 SUMMARY:A"
    )
    assert entries(text, "2026-03-02", "UTC")[0].startswith(f"{hour:02}:")
    assert not asked(text, "2026-03-03")


def test_an_offset_may_stand_behind_the_time_or_be_asked_for():
    text = calendar("DTSTART:20260302T090000-0300 DTEND:20260302T100000-03:00 SUMMARY:A")
    named = text.replace("DTSTART", "DTSTART;TZID=America/Sao_Paulo")
    assert entries(text, zone="UTC") == entries(named, zone="UTC") == ["12:00-13:00 A"]
    assert entries(text, zone="+05:30") == ["17:30-18:30 A"]


@pytest.mark.parametrize("zone", ["Europe", "../../etc/passwd", "Europe/Berln", "x" * 5000, ""])
def test_a_zone_that_is_none_is_refused(zone):
    assert refusal(daily(), zone=zone).startswith("--timezone: ")


def test_events_while_the_clocks_change_are_left_out_and_the_others_kept():
    spring = calendar(
        berlin("20260329", "0130", "0330", name="Night"),
        berlin("20260329", "0030", "0130", name="Before"),
        berlin("20260329", "0300", "0400", name="After"),
    )
    assert entries(spring) == ["00:30-01:30 Before", "03:00-04:00 After"]
    assert "Left out, while the clocks change: Night." in notes(spring)


# --- recurrence ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "days"),
    [
        ("RRULE:FREQ=DAILY;INTERVAL=10", [2, 12, 22]),
        ("RRULE:FREQ=DAILY;UNTIL=20260305T080000Z", [2, 3, 4, 5]),  # 09:00 in Berlin, included
        ("RRULE:FREQ=DAILY;UNTIL=20260305T075959Z", [2, 3, 4]),
        ("RRULE:FREQ=DAILY;UNTIL=20260304", [2, 3, 4]),
        ("RRULE:FREQ=DAILY;UNTIL=20260304T090000", [2, 3, 4]),
        ("RRULE:FREQ=MONTHLY;BYDAY=1MO,-1TU", [2, 31]),
        ("RRULE:FREQ=DAILY;COUNT=4 EXDATE;TZID=Europe/Berlin:20260303T090000", [2, 4, 5]),
        ("RDATE;TZID=Europe/Berlin:20260310T090000,20260320T140000", [2, 10, 20]),
    ],
)
def test_recurrences_are_followed(lines, days):
    assert [
        day for day in range(1, 32) if asked(daily(*lines.split()), f"2026-03-{day:02d}")
    ] == days


def asked(text: str, day: str) -> bool:
    with suppress(UserError):
        return bool(entries(text, day))
    return False


# --- what cannot be asked --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ("DTSTART:20260302T090000", "without length"),
        ("DTSTART:20260302T090010 DTEND:20260302T090050", "without length"),
        ("DTSTART;VALUE=DATE:20260228 DTEND;VALUE=DATE:20260305", "all-day"),
        ("DTSTART:20260302T090000 DURATION:PT9H TRANSP:TRANSPARENT", "free"),
        (
            "DTSTART:20260302T090000 DURATION:PT9H X-MICROSOFT-CDO-BUSYSTATUS:WORKINGELSEWHERE",
            "working elsewhere",
        ),
        ("DTSTART:20260228T090000 DTEND:20260303T080000", "over midnight"),
        ("DTSTART:20260302T090000 DURATION:PT1H STATUS:CANCELLED", "cancelled"),
        *(
            (event, "as it cannot be read")
            for event in (
                "", "DTSTART:soon DURATION:PT1H", "DTSTART:20260302T090000 DURATION:long",
                "DTSTART:20260302T090000 DTEND:20260302T080000",
                "DTSTART:20260302T090000 DTEND;VALUE=DATE:20260302",
                "DTSTART:00010101T000000Z DURATION:PT1H",
                "DTSTART:20260302T090000 DURATION:PT1H EXRULE:FREQ=DAILY",
                *(
                    f"DTSTART:20260302T090000 DURATION:PT1H RRULE:{rule}"
                    for rule in ("FREQ=NEVER", "INTERVAL=2", "FREQ=DAILY;INTERVAL=0",
                                 "FREQ=SECONDLY", "FREQ=MONTHLY;BYDAY=9MO", "nonsense")
                ),
            )
        ),
    ],
)  # fmt: skip
def test_what_is_no_event_of_the_day_is_left_out_with_its_reason(event, reason):
    text = calendar(f"{event} SUMMARY:A", "DTSTART:20260302T110000 DURATION:PT1H SUMMARY:B")
    assert entries(text, "2026-03-02") == ["11:00-12:00 B"]
    assert f"Left out, {reason}: A." in notes(text, "2026-03-02")
    assert ": A" in refusal(calendar(f"{event} SUMMARY:A"), "2026-03-02")


def test_a_broken_part_that_no_time_hangs_on_is_left_out_alone_and_named():
    broken = (
        "BEGIN:VTODO\nDUE:tomorrow\nSUMMARY:Milk\nEND:VTODO\n"
        "BEGIN:VTIMEZONE\nTZID:Europe/Berlin\nTZID:Berlin\nEND:VTIMEZONE\n"
    )
    alarm = "BEGIN:VALARM TRIGGER: END:VALARM PRIORITY:high SEQUENCE:one GEO:here no-colon"
    text = calendar(berlin("20260302", "0900", "1000", alarm), head=broken)
    assert entries(text, "2026-03-02") == ["09:00-10:00 A"]
    [said] = [note for note in notes(text) if note.startswith("Left out")]
    for part in ("a to-do Milk", "a time zone", "an alarm", "PRIORITY of A", "and 2 more"):
        assert part in said


def test_an_override_that_repeats_its_rule_holds_for_one_day_or_for_all_that_follow():
    rule = "RRULE:FREQ=DAILY;COUNT=4"
    for ranged, moved in (("", [4]), (";RANGE=THISANDFUTURE", [4, 5])):
        override = berlin(
            "20260304", "1300", "1400", rule,
            f"RECURRENCE-ID{ranged};TZID=Europe/Berlin:20260304T090000", name="B",
        )  # fmt: skip
        text = calendar(berlin("20260302", "0900", "1000", rule), override).replace(
            "UID:1", "UID:0"
        )
        assert {day: entries(text, f"2026-03-0{day}") for day in (3, 4, 5)} == {
            day: ["13:00-14:00 B" if day in moved else "09:00-10:00 A"] for day in (3, 4, 5)
        }
        assert not asked(text, "2026-03-06")


def test_a_zip_of_calendars_is_read_as_google_exports_it():
    def zipped(**files: str) -> bytes:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in files.items():
                archive.writestr(name.replace("_", "."), text)
        return packed.getvalue()

    other = calendar(berlin("20260302", "1100", "1200", name="B")).replace("UID:0", "UID:x")
    found = read_day(zipped(jo_ics="\ufeff" + daily(), club_ics=other), "c.zip")
    assert [event.name for event in found.problem.events] == ["A", "B"]
    for broken in (zipped(a_txt="x"), zipped(a_ics=other)[:-9], b"PK\x03\x04"):
        said = refusal_of(lambda broken=broken: read_day(broken, "c.zip"), "zip")
        assert said.startswith("c.zip is a ")


def test_line_ends_of_windows_and_a_mark_at_the_start_do_no_harm():
    windows = GOOGLE.replace("\n", "\r\n").encode("utf-8-sig")
    assert read_day(windows, "c.ics") == read_day(GOOGLE.encode(), "c.ics")


def test_a_newer_version_replaces_an_older_one_and_the_same_event_twice_is_one():
    text = calendar(
        berlin("20260302", "0900", "1000", "SEQUENCE:1"),
        berlin("20260302", "0800", "1000", "SEQUENCE:0", name="Old"),
        *[berlin("20260302", "1500", "1600", name="B")] * 2,
    )
    same = text.replace("UID:1", "UID:0").replace("UID:3", "UID:2")
    assert entries(same) == ["09:00-10:00 A", "15:00-16:00 B"]


def test_a_day_without_events_names_the_nearest_that_have_some():
    text = calendar(
        *(berlin(f"202603{d:02d}", "0900", "1000", name=f"E{d}") for d in (1, 5, 9, 12, 20, 30))
    )
    assert refusal(text, "2026-03-10").endswith(
        "2026-03-01, 2026-03-05, 2026-03-09, 2026-03-12, 2026-03-20"
    )
    assert "2027-05-24, 2027-05-31" in refusal(daily("RRULE:FREQ=WEEKLY"), "2027-05-27")
    assert refusal(text, "2199-01-01").endswith("some are 2026-03-01")
    # None that cannot be asked.
    rule = "DTSTART:21991229T090000 DURATION:PT1H SUMMARY:A RRULE:FREQ=DAILY;INTERVAL=3"
    assert refusal(calendar(rule), "2199-12-31").endswith("dates with some are 2199-12-29")


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
        ("BEGIN:VCARD\nFN:Jo\nEND:VCARD\n", "a broken calendar"),
    ],
)
def test_a_broken_or_empty_file_is_one_sentence(text, says):
    assert refusal(text).startswith(f"c.ics is {says}")


@pytest.mark.parametrize("never", ["BYMONTH=2;BYMONTHDAY=30", "BYMONTH=4;BYMONTHDAY=31"])
def test_a_rule_that_never_comes_true_costs_no_time(never):
    never_again = berlin("20200101", "0900", "1000", f"RRULE:FREQ=DAILY;{never}", name="Never")
    text = calendar(never_again, berlin("20260302", "0900", "1000"))
    assert within(3, lambda: entries(text, "2026-03-02"))
    assert entries(text, "2026-03-02") == ["09:00-10:00 A"]
