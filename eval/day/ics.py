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
from icalendar import Calendar, Component, vRecur
from icalendar.timezone import tzp
from recurring_ical_events import CalendarQuery, EventAdapter

from data.common.errors import UserError
from data.common.fields import nearest
from eval.day.entry import Entry, cleaned, listed

#: Years of dates that are followed; Apple dates birthdays without a year to 1604.
_YEARS = range(1600, 2200)
#: Days on either side that are searched where the day asked for has no events, and dates named.
_AROUND, _NAMED = timedelta(days=60), 5
#: Days searched from an event's start on for its first date.
_SEARCHED = 500
_ONE_DAY = timedelta(days=1)
#: Of an event that recurs; a day may see all occurrences of a longer one.
_LONGEST = timedelta(days=40)
#: Frequencies of rules that are followed, and occurrences a day at most.
_FREQUENCIES, _MOST_A_DAY = ("DAILY", "WEEKLY", "MONTHLY", "YEARLY"), 24
#: What the libraries raise for values and structures that make no sense.
_BROKEN = (
    *(ValueError, TypeError, LookupError, AttributeError, AssertionError),
    *(OverflowError, RecursionError, OSError),
)

#: Why events are left out: to each reason the names of those events, by UID.
LeftOut = defaultdict[str, dict[str, str]]


class _UnreadableError(Exception):
    """Why an event cannot be followed; the text completes "left out, …"."""


@dataclass(frozen=True)
class _Occurrence:
    """One occurrence on the clock of the zone that the day is read in."""

    event: Component
    start: datetime
    end: datetime
    all_day: bool
    #: The clock is changed during it, or shows its times twice.
    changes: bool

    @property
    def obstacle(self) -> str | None:
        """Why it cannot be asked on the day of its start; None where it can."""
        length = self.end - self.start
        if str(_first(self.event, "STATUS") or "").upper() == "CANCELLED":
            return "cancelled"
        if self.all_day or (self.start.time() == self.end.time() == time() and length):
            return "all-day"
        if self.end > datetime.combine(self.start.date(), time()) + _ONE_DAY:
            return "over midnight"
        if self.changes:
            return "while the clocks change"
        return None if length else "without length"

    def entry(self) -> Entry:
        """The occurrence as an event of the day of its start."""
        day = datetime.combine(self.start.date(), time())
        start, end = ((moment - day) // timedelta(minutes=1) for moment in (self.start, self.end))
        categories = tuple(map(str, self.event.categories))
        high = 1 <= _number(self.event, "PRIORITY") <= 4
        return Entry(_name(self.event), start, end, high, categories)


@dataclass(frozen=True, eq=False)
class _Series:
    """The VEVENTs of one UID: an event with its recurrences, moved and cancelled occurrences."""

    uid: str
    events: list[Component]
    query: CalendarQuery

    @property
    def recurs(self) -> bool:
        return any(key in event for event in self.events for key in ("RRULE", "RDATE"))

    def between(self, low: date, high: date, zone: tzinfo | None) -> list[_Occurrence]:
        """What takes place from ``low`` on and before ``high``, on the clock of ``zone``.

        Raises:
            _UnreadableError: when a recurrence cannot be followed.
        """
        span = (datetime.combine(end, time(), zone) for end in (low, high))
        try:
            return [_placed(event, zone) for event in self.query.between(*span)]
        except _BROKEN:
            raise _UnreadableError("with a recurrence that cannot be read") from None

    def dates(self, low: date, high: date, zone: tzinfo | None) -> set[date]:
        """Dates between the two on which it can be asked."""
        if not any(isinstance(event["DTSTART"].dt, datetime) for event in self.events):
            return set()
        occurrences = self.between(low, high, zone)
        return {one.start.date() for one in occurrences if one.obstacle is None}

    def first_date(self, zone: tzinfo | None) -> date | None:
        """The first date on which it can be asked. Searched in ever longer spans, since most events
        can be asked on the day that they start."""
        begun = min(_as_date(EventAdapter(event).raw_start) for event in self.events)
        low, days = begun - _ONE_DAY, 2
        while (low - begun).days < _SEARCHED:
            high = low + timedelta(days=days)
            if dates := self.dates(low, high, zone):
                return min(dates)
            low, days = high, 2 * days
        return None


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
    zone, label = _zone(calendars, series, zone_name)
    dates = _dates(series, None, zone, left_out)
    notes = []
    if day is None and dates:
        day = min(dates)
        only = len(dates) == 1 and not any(one.recurs for one in series)
        which = "only" if only else "first"
        notes.append(f"Asked is {day:%A}, {day}, the {which} day with events.")
    if label:
        notes.append(f"Times are those of {label}.")
    notes += _unknown_zones(series)
    entries = []
    for one in series if day else ():
        try:
            occurrences = one.between(day, day + _ONE_DAY, zone)
        except _UnreadableError:  # known from the search for dates
            continue
        for occurrence in occurrences:
            began_before = occurrence.start.date() < day and not occurrence.all_day
            reason = "over midnight" if began_before else occurrence.obstacle
            if reason:
                left_out[reason][one.uid] = _name(occurrence.event)
            else:
                entries.append(occurrence.entry())
    lost = [f"Left out, {why}: {listed(list(names.values()))}." for why, names in left_out.items()]
    if entries:
        return entries, notes + lost
    none = f"{source} has no events that can be asked"
    if day is not None and dates:
        dates |= _dates(series, day, zone, left_out)
        near = sorted(sorted(dates, key=lambda other: (abs(other - day), other))[:_NAMED])
        none += f" on {day}; the nearest dates with some are {', '.join(map(str, near))}"
    raise UserError(" ".join([f"{none}.", *lost]).rstrip("."))


def _dates(
    series: Iterable[_Series], day: date | None, zone: tzinfo | None, left_out: LeftOut
) -> set[date]:
    """Dates with something to ask: around ``day``, or the first one of each series."""
    dates: set[date] = set()
    for one in series:
        try:
            if day is not None:
                dates |= one.dates(day - _AROUND, day + _AROUND, zone)
            elif first := one.first_date(zone):
                dates.add(first)
        except _UnreadableError as reason:
            left_out[str(reason)][one.uid] = _name(one.events[0])
    return dates


def _placed(event: Component, zone: tzinfo | None) -> _Occurrence:
    """An occurrence on the clock of ``zone``, seconds cut off."""
    given = [event["DTSTART"].dt, event["DTEND"].dt]
    all_day = not isinstance(given[0], datetime)
    ends = [
        moment if isinstance(moment, datetime) else datetime.combine(moment, time())
        for moment in given
    ]
    changes = False
    if zone is not None and ends[0].tzinfo is not None:
        exact = [moment.astimezone(UTC) for moment in ends]
        ends = [moment.astimezone(zone) for moment in exact]
        changes = any(moment.fold for moment in ends)
        ends = [moment.replace(tzinfo=None, fold=0) for moment in ends]
        changes = changes or ends[1] - ends[0] != exact[1] - exact[0]
    start, end = (moment.replace(second=0, microsecond=0, tzinfo=None) for moment in ends)
    return _Occurrence(event, start, end, all_day, changes)


# --- reading ---------------------------------------------------------------------------------


def _parsed(text: str, source: str) -> list[Component]:
    """The components of a file, VCALENDARs as a rule."""
    tzp.use_default()  # forgets the zones of calendars read before
    try:
        with warnings.catch_warnings():
            # Zones that are guessed from a longer name; the notes name the zone.
            warnings.simplefilter("ignore")
            components = Calendar.from_ical(text.strip() + "\n", multiple=True)
    except _BROKEN as error:
        reason = cleaned(str(error))
        raise UserError(f"{source} is a broken calendar ({reason}); export it again") from None
    if not components:
        raise UserError(f"{source} is a broken calendar (its end is missing); export it again")
    if not any(component.walk("VEVENT") for component in components):
        raise UserError(f"{source} is a calendar without events")
    return components


def _all_series(calendars: Iterable[Component], left_out: LeftOut) -> Iterator[_Series]:
    """The events that can be read, those of one UID together."""
    together: defaultdict[str, list[Component]] = defaultdict(list)
    for calendar in calendars:
        void = str(_first(calendar, "METHOD") or "").upper() == "CANCEL"
        for event in calendar.walk("VEVENT"):
            uid = str(_first(event, "UID") or id(event))
            try:
                _check(event)
            except _UnreadableError as reason:
                left_out[str(reason)][uid] = _name(event)
                continue
            if void:
                event["STATUS"] = "CANCELLED"
            together[uid].append(event)
    for uid, events in together.items():
        alone = Calendar()
        alone.subcomponents = events
        try:
            yield _Series(uid, events, CalendarQuery(alone))
        except _BROKEN:
            left_out["with a recurrence that cannot be read"][uid] = _name(events[0])


def _check(event: Component) -> None:
    """Check a VEVENT, and bring its rules into a form that can be followed to their end.

    Raises:
        _UnreadableError: when its times, or its recurrences, cannot be followed.
    """
    adapter = EventAdapter(event)
    try:
        start, end = adapter.raw_start, adapter.raw_end
        if isinstance(start, datetime) != isinstance(end, datetime):
            raise TypeError(end)
        backwards = adapter.start != start and adapter.start < adapter.end
        read = (adapter.exdates, adapter.rdates, adapter.recurrence_ids, event.categories)
    except _BROKEN:
        raise _UnreadableError("without times that can be read") from None
    del read
    if not {start.year, end.year} <= set(_YEARS):
        raise _UnreadableError(f"not between {_YEARS[0]} and {_YEARS[-1]}")
    if backwards:
        raise _UnreadableError("ending before its start")
    if "EXRULE" in event:
        raise _UnreadableError("with a recurrence of a form that is not followed")
    event["SEQUENCE"] = _number(event, "SEQUENCE")
    rules = event.pop("RRULE", [])
    if rules and adapter.duration > _LONGEST:
        raise _UnreadableError("over midnight")
    try:
        rules = rules if isinstance(rules, list) else [rules]
        if true := [rule for rule in rules if _comes_true(rule, start)]:
            event["RRULE"] = true
    except _BROKEN:
        raise _UnreadableError("with a recurrence that cannot be read") from None


def _comes_true(rule: vRecur, start: datetime | date) -> bool:
    """Whether a rule ever comes true; its UNTIL becomes a time in UTC, as RFC 5545 wants it.

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
    late = _wall(start).replace(year=year if year < 9900 else year - 400)
    if next(iter(rrulestr(bare.to_ical().decode(), dtstart=late)), None) is None:
        return False
    if (until := rule.get("UNTIL")) and isinstance(start, datetime):
        end = until[0]
        if not isinstance(end, datetime):
            end = datetime.combine(end, time(23, 59, 59))
        if start.tzinfo and not end.tzinfo:
            end = end.replace(tzinfo=start.tzinfo).astimezone(UTC)
        rule["UNTIL"] = [end]
    return True


def _first(component: Component, key: str) -> Any:
    """A property, the first one where it is there several times; None where it is missing."""
    value = component.get(key)
    return value[0] if isinstance(value, list) else value


def _name(event: Component) -> str:
    return str(_first(event, "SUMMARY") or "")


def _number(event: Component, key: str) -> int:
    """A whole number; 0 where it is missing or spoilt, as RFC 5545 has it for those read here."""
    value = _first(event, key)
    return int(value) if isinstance(value, int) else 0


def _as_date(moment: datetime | date) -> date:
    return moment.date() if isinstance(moment, datetime) else moment


def _wall(moment: datetime | date) -> datetime:
    """What a clock shows at a time, or at the beginning of a date."""
    if isinstance(moment, datetime):
        return moment.replace(tzinfo=None)
    return datetime.combine(moment, time())


# --- zones -----------------------------------------------------------------------------------


def _zone(
    calendars: Sequence[Component], series: Sequence[_Series], name: str | None
) -> tuple[tzinfo | None, str | None]:
    """The zone whose clock is read and its name; None where all times are floating.

    Raises:
        UserError: when no zone is called ``name``.
    """
    asked = _zone_named(name) if name is not None else None
    if name is not None and asked is None:
        near = nearest(name, sorted(zoneinfo.available_timezones()))
        raise UserError(f"--timezone: {name!r} is no time zone such as Europe/Berlin{near}")
    starts = [event["DTSTART"] for one in series for event in one.events]
    zones = {
        start.params.get("TZID", "UTC"): start.dt.tzinfo
        for start in reversed(starts)
        if isinstance(start.dt, datetime) and start.dt.tzinfo
    }
    if asked or not zones:
        return (asked, name) if zones else (None, None)
    for calendar in calendars:
        own = str(_first(calendar, "X-WR-TIMEZONE") or "")
        if zone := _zone_named(own):
            return zone, cleaned(own)
    named = [start.params.get("TZID", "UTC") for start in starts]
    counted = Counter(label for label in named if label in zones and label != "UTC")
    label = counted.most_common(1)[0][0] if counted else "UTC"
    return zones[label], cleaned(label)


def _zone_named(name: str) -> tzinfo | None:
    try:
        return tzp.timezone(name) if name else None
    except (OSError, ValueError):  # the name of a folder, or no name at all
        return None


def _unknown_zones(series: Iterable[_Series]) -> list[str]:
    """A sentence for each zone that an event names and nobody knows."""
    starts = [event["DTSTART"] for one in series for event in one.events]
    unknown = {
        start.params["TZID"]: ""
        for start in starts
        if "TZID" in start.params and isinstance(start.dt, datetime) and not start.dt.tzinfo
    }
    return [f"Time zone {cleaned(one)} is unknown; its times stand as they are." for one in unknown]
