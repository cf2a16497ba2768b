"""One day of an iCalendar file (RFC 5545), as Google Calendar, Outlook and Apple write them.

``icalendar`` reads the file; ``recurring_ical_events`` follows recurrences, and the occurrences
that were moved, changed or cancelled. What becomes of an event:

* Times are those of one zone: the one asked for, else the calendar's ``X-WR-TIMEZONE``, else the
  zone that most events name, else UTC. Floating times are taken as they stand.
* All-day events take no hours from the others and have no length to weigh: left out.
* Events over midnight are left out, not clipped. Their worth is that of the whole, and who takes
  the part of this day takes the other one with it. One that ends at midnight is of this day alone.
* Events during which, or in the repeated hour at whose end, the clocks change are left out: their
  length on the clock is not their length. The rest of such a day is like any other.
* Cancelled events and those without length are left out. Seconds are cut off.
* ``PRIORITY`` 1 to 4, which RFC 5545 calls high, marks a priority.

Whatever is left out is named in a sentence.
"""

from __future__ import annotations

import math
import warnings
import zoneinfo
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Any

from dateutil.rrule import rrulestr
from icalendar import Calendar, Component, Event, vRecur
from icalendar.timezone import tzp
from recurring_ical_events import CalendarQuery, EventAdapter

from data.common.errors import UserError
from data.common.fields import nearest
from eval.day.entry import Entry, cleaned, listed

#: Years of dates that are followed; Apple dates birthdays without a year to 1604.
_YEARS = range(1600, 2200)
#: Days on either side that are searched where the day asked for has no events, and dates named.
_AROUND, _NAMED = timedelta(days=60), 5
#: Days from an event's start on that are searched for its first date, in ever longer spans, since
#: most events can be asked on the day that they start.
_SPANS = (2, 4, 8, 16, 32, 64, 128, 256)
_ONE_DAY = timedelta(days=1)
#: Of an event that recurs, so that a day sees few of its occurrences: its length, the frequencies
#: of its rules, and occurrences a day.
_LONGEST_EVENT, _MOST_A_DAY = timedelta(days=40), 24
_FREQUENCIES = ("DAILY", "WEEKLY", "MONTHLY", "YEARLY")
#: Errors that the libraries raise for values and structures that make no sense.
_NONSENSE = (
    *(ValueError, TypeError, LookupError, AttributeError, AssertionError),
    *(OverflowError, RecursionError, OSError),
)
_NO_TIMES = "without times that can be read"
_NO_RECURRENCE = "with a recurrence that cannot be read"

#: Why events are left out: to each reason their names, by UID.
LeftOut = defaultdict[str, dict[str, str]]


@dataclass(frozen=True)
class _Series:
    """The VEVENTs of one UID: an event with its recurrences, moved and cancelled occurrences."""

    uid: str
    events: Sequence[Event]
    query: CalendarQuery

    @property
    def name(self) -> str:
        return _name(self.events[0])

    def between(
        self, low: date, high: date, zone: tzinfo | None, left_out: LeftOut
    ) -> list[tuple[date, Entry | str]]:
        """The date and event of all that takes place from ``low`` on and before ``high``, or in the
        event's place the reason why it cannot be asked."""
        span = (datetime.combine(end, time(), zone) for end in (low, high))
        try:
            return [_placed(event, zone) for event in self.query.between(*span)]
        except _NONSENSE:
            left_out[_NO_RECURRENCE][self.uid] = self.name
            return []

    def dates(self, day: date | None, zone: tzinfo | None, left_out: LeftOut) -> set[date]:
        """Dates on which it can be asked: around ``day``, or the first ones of all."""
        starts = [_span(event)[0] for event in self.events]
        if not any(isinstance(start, datetime) for start in starts):
            return set()
        low = day - _AROUND if day else min(_as_date(start) for start in starts) - _ONE_DAY
        for days in (2 * _AROUND.days,) if day else _SPANS:
            high = low + timedelta(days=days)
            placed = self.between(low, high, zone, left_out)
            if dates := {when for when, event in placed if isinstance(event, Entry)}:
                return dates
            low = high
        return set()


def read_calendar(
    text: str, source: str, day: date | None = None, zone_name: str | None = None
) -> tuple[list[Entry], list[str]]:
    """The events of one day, and a sentence for all that was chosen or left out.

    Args:
        day: None for the first day that has events.
        zone_name: of the zone whose clock is read; None for the calendar's own.

    Raises:
        UserError: when the file is broken, the zone unknown, or the day has no events; then the
            nearest dates with some are named.
    """
    if day is not None and day.year not in _YEARS:
        raise UserError(f"--date {day} is not between {_YEARS[0]} and {_YEARS[-1]}")
    calendars = _parsed(text, source)
    left_out: LeftOut = defaultdict(dict)
    series = list(_all_series(calendars, left_out))
    zone, notes = _zone(calendars, [e for one in series for e in one.events], zone_name)
    dates = {min(found) for one in series if (found := one.dates(None, zone, left_out))}
    if day is None and dates:
        day = min(dates)
        recur = any(key in e for one in series for e in one.events for key in ("RRULE", "RDATE"))
        which = "first" if recur or len(dates) > 1 else "only"
        notes.insert(0, f"Asked is {day:%A}, {day}, the {which} day with events.")
    entries = []
    for one in series:
        for when, event in one.between(day, day + _ONE_DAY, zone, left_out) if day else ():
            if isinstance(event, str):
                left_out[event][one.uid] = one.name
            elif when == day:
                entries.append(event)
    lost = [f"Left out, {why}: {listed(list(names.values()))}." for why, names in left_out.items()]
    if entries:
        return entries, notes + lost
    none = f"{source} has no events that can be asked"
    if day is not None and dates:
        dates.update(*(one.dates(day, zone, left_out) for one in series))
        near = sorted(sorted(dates, key=lambda other: (abs(other - day), other))[:_NAMED])
        none += f" on {day}; the nearest dates with some are {', '.join(map(str, near))}"
    raise UserError(" ".join([f"{none}.", *lost]).rstrip("."))


def _placed(event: Event, zone: tzinfo | None) -> tuple[date, Entry | str]:
    """The date of an occurrence on the clock of ``zone``, and the event of that day, or why it is
    not one."""
    begin, stop = _span(event)
    if str(_first(event, "STATUS")).upper() == "CANCELLED":
        return _as_date(begin), "cancelled"
    if not (isinstance(begin, datetime) and isinstance(stop, datetime)):
        return begin, "all-day"
    exact = [
        moment.astimezone(UTC) if zone and moment.tzinfo else moment for moment in (begin, stop)
    ]
    local = [moment.astimezone(zone) if moment.tzinfo else moment for moment in exact]
    start, end = (moment.replace(tzinfo=None, fold=0) for moment in local)
    changes = local[0].fold or local[1].fold or end - start != exact[1] - exact[0]
    start, end = (moment.replace(second=0, microsecond=0) for moment in (start, end))
    midnight = datetime.combine(start, time())
    if start == midnight and end.time() == time() and end > start:
        return start.date(), "all-day"
    if end > midnight + _ONE_DAY:
        return start.date(), "over midnight"
    if changes:
        return start.date(), "while the clocks change"
    if start == end:
        return start.date(), "without length"
    first, last = ((moment - midnight) // timedelta(minutes=1) for moment in (start, end))
    high = 1 <= _number(event, "PRIORITY") <= 4
    return start.date(), Entry(_name(event), first, last, high, tuple(map(str, event.categories)))


# --- reading ---------------------------------------------------------------------------------


def _parsed(text: str, source: str) -> list[Calendar]:
    """The components of a file, VCALENDARs as a rule."""
    tzp.use_default()  # forgets the zones of calendars read before
    try:
        with warnings.catch_warnings():
            # Zones that are guessed from a longer name; the notes name the zone.
            warnings.simplefilter("ignore")
            components = Calendar.from_ical(text.strip() + "\n", multiple=True)
    except _NONSENSE as error:
        reason = cleaned(str(error))
        raise UserError(f"{source} is a broken calendar ({reason}); export it again") from None
    if not components:
        raise UserError(f"{source} is a broken calendar (its end is missing); export it again")
    if not any(component.walk("VEVENT") for component in components):
        raise UserError(f"{source} is a calendar without events")
    return components


def _all_series(calendars: Iterable[Calendar], left_out: LeftOut) -> Iterator[_Series]:
    """The events that can be read, those of one UID together."""
    together: defaultdict[str, list[Event]] = defaultdict(list)
    for calendar in calendars:
        void = str(_first(calendar, "METHOD")).upper() == "CANCEL"
        for event in (one for one in calendar.walk("VEVENT") if isinstance(one, Event)):
            uid = str(_first(event, "UID") or id(event))
            if reason := _flaw(event):
                left_out[reason][uid] = _name(event)
                continue
            if void:
                event["STATUS"] = "CANCELLED"
            together[uid].append(event)
    for uid, events in together.items():
        alone = Calendar()
        alone.subcomponents = list(events)
        try:
            yield _Series(uid, events, CalendarQuery(alone))
        except _NONSENSE:
            left_out[_NO_RECURRENCE][uid] = _name(events[0])


def _flaw(event: Event) -> str | None:
    """Why a VEVENT cannot be followed, if so. Its rules are left in a form that can be."""
    adapter = EventAdapter(event)
    event["SEQUENCE"] = _number(event, "SEQUENCE")
    try:
        start, end = _span(event)
        # All that the library reads later is read here once.
        _ = (adapter.exdates, adapter.rdates, adapter.recurrence_ids, event.categories)
        if isinstance(start, datetime) != isinstance(end, datetime):
            return _NO_TIMES
        if not {start.year, end.year} <= set(_YEARS):
            return f"not between {_YEARS[0]} and {_YEARS[-1]}"
        if (adapter.start, adapter.end) != (start, end):  # which the library swaps
            return "ending before its start"
    except _NONSENSE:
        return _NO_TIMES
    rules = event.pop("RRULE", [])
    if rules and adapter.duration > _LONGEST_EVENT:
        return "over midnight"
    try:
        rules = rules if isinstance(rules, list) else [rules]
        if kept := [rule for rule in rules if _comes_true(rule, start)]:
            event["RRULE"] = kept
    except _NONSENSE:
        return _NO_RECURRENCE
    return "with a recurrence of a form that is not followed" if "EXRULE" in event else None


def _comes_true(rule: vRecur, start: datetime | date) -> bool:
    """Whether a rule has any occurrence. Its UNTIL becomes a time in UTC, as RFC 5545 wants it.

    Raises:
        ValueError, KeyError, TypeError: when it cannot be followed, or occurs too often.
    """
    times = math.prod(len(rule.get(key, [0])) for key in ("BYHOUR", "BYMINUTE", "BYSECOND"))
    frequent = rule["FREQ"][0].upper() not in _FREQUENCIES or times > _MOST_A_DAY
    if frequent or min(rule.get("INTERVAL", [1])) < 1:
        raise ValueError(rule)
    # dateutil seeks a date that never comes until the year 9999. Dates and weekdays repeat every
    # 400 years, so the search may begin that late; within 100 years each has met each.
    bare = vRecur({key: value for key, value in rule.items() if key not in ("UNTIL", "COUNT")})
    year = 9999 - (9999 - start.year) % 400
    late = datetime(year if year < 9900 else year - 400, start.month, start.day)
    if next(iter(rrulestr(bare.to_ical().decode(), dtstart=late)), None) is None:
        return False
    if (until := rule.get("UNTIL")) and isinstance(start, datetime):
        last = until[0]
        if not isinstance(last, datetime):
            last = datetime.combine(last, time(23, 59, 59))
        if start.tzinfo and not last.tzinfo:
            last = last.replace(tzinfo=start.tzinfo).astimezone(UTC)
        rule["UNTIL"] = [last]
    return True


def _span(event: Event) -> tuple[datetime | date, datetime | date]:
    """Start and end; DTEND holds, also where there is a DURATION beside it."""
    adapter = EventAdapter(event)
    return adapter.raw_start, adapter.raw_end


def _as_date(moment: datetime | date) -> date:
    return moment.date() if isinstance(moment, datetime) else moment


def _first(component: Component, key: str) -> Any:
    """A property, the first one where it is there several times; None where it is missing."""
    value = component.get(key)
    return value[0] if isinstance(value, list) else value


def _name(event: Event) -> str:
    return str(_first(event, "SUMMARY") or "")


def _number(event: Event, key: str) -> int:
    """A whole number; 0 where it is missing or spoilt, as RFC 5545 has it for those read here."""
    value = _first(event, key)
    return int(value) if isinstance(value, int) else 0


# --- zones -----------------------------------------------------------------------------------


def _zone(
    calendars: Sequence[Calendar], events: Sequence[Event], name: str | None
) -> tuple[tzinfo | None, list[str]]:
    """The zone whose clock is read, None where all times are floating; and sentences about zones.

    Raises:
        UserError: when no zone is called ``name``.
    """
    if name is not None and _zone_named(name) is None:
        near = nearest(name, sorted(zoneinfo.available_timezones()))
        raise UserError(f"--timezone: {name!r} is no time zone such as Europe/Berlin{near}")
    zones: dict[str, tzinfo] = {}
    named: Counter[str] = Counter()
    unknown: dict[str, None] = {}
    for event in events:
        start, label = _span(event)[0], event["DTSTART"].params.get("TZID")
        if isinstance(start, datetime) and start.tzinfo:
            zones.setdefault(label or "UTC", start.tzinfo)
            named.update([label] if label else [])
        elif isinstance(start, datetime) and label:
            unknown[label] = None
    notes = [
        f"Time zone {cleaned(one)} is unknown; its times stand as they are." for one in unknown
    ]
    if not zones:
        return None, notes
    own = [str(_first(calendar, "X-WR-TIMEZONE") or "") for calendar in calendars]
    label = name or next(filter(_zone_named, own), None)
    zone = _zone_named(label) if label else None
    if not zone:
        label = named.most_common(1)[0][0] if named else "UTC"
        zone = zones[label]
    return zone, [f"Times are those of {cleaned(str(label))}.", *notes]


def _zone_named(name: str) -> tzinfo | None:
    try:
        return tzp.timezone(name) if name else None
    except (OSError, ValueError):  # the name of a folder, or no name at all
        return None
