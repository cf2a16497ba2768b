"""One day of an iCalendar file (RFC 5545), as Google Calendar, Outlook and Apple write them.

``icalendar`` reads the file and ``dateutil`` expands the recurrences. What becomes of an event:

* Times are those of one zone: the one asked for, else the calendar's ``X-WR-TIMEZONE``, else the
  zone that most events name, else UTC. Floating times are taken as they stand.
* Recurring events: ``RRULE``, ``RDATE`` and ``EXDATE`` are followed on the clock of the event's
  zone, so that a weekly 9 o'clock stays at 9 in summer; ``RECURRENCE-ID`` replaces its occurrence.
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

import heapq
import warnings
import zoneinfo
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from itertools import islice
from typing import Any

from dateutil.rrule import rrulestr
from icalendar import Calendar, Component
from icalendar.prop import vDDDTypes
from icalendar.timezone import tzp

from data.common.errors import UserError
from data.recipe import nearest
from eval.day.days import Entry, cleaned, listed

#: Years of dates that are followed; Apple dates birthdays without a year to 1604.
_YEARS = range(1600, 2200)
#: Days on either side that are searched where the day asked for has no events, and dates named.
_AROUND, _NAMED = timedelta(days=60), 5
#: Occurrences of one event that are looked at for its first date, and followed at most.
_FIRST, _MOST = 400, 5_000
_ONE_DAY = timedelta(days=1)
#: Frequencies that no day can hold, and what chooses days of a rule.
_TOO_OFTEN = ("SECONDLY", "MINUTELY")
_DAYS = ("BYDAY", "BYMONTHDAY", "BYYEARDAY", "BYWEEKNO", "BYMONTH")
#: Rules are followed so many years later, where leap years and weekdays are the same (they repeat
#: every 400 years): dateutil seeks a date that never comes until the year 9999.
_ERA = 19 * 400

#: What icalendar and dateutil raise for values and structures that make no sense.
_BROKEN = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)

#: Why events are left out: to each reason the names of those events.
LeftOut = defaultdict[str, dict[int, str]]


class _UnreadableError(Exception):
    """Why an event cannot be followed; the text completes "left out, …"."""


@dataclass(frozen=True, eq=False)
class _Item:
    """A VEVENT, its recurrences included.

    Attributes:
        start: on the clock of ``zone``, which is None for floating times and whole days.
        without: occurrences that are not this item's: moments (see ``_moment``) and dates.
    """

    name: str
    start: datetime
    length: timedelta
    zone: tzinfo | None
    label: str | None
    all_day: bool
    cancelled: bool
    priority: bool
    categories: tuple[str, ...]
    event: Component
    without: frozenset[datetime | date]

    @property
    def recurs(self) -> bool:
        return "RRULE" in self.event or "RDATE" in self.event


@dataclass(frozen=True)
class _Occurrence:
    """One occurrence on the clock of the zone that the day is read in; ``changes`` says whether
    that clock is changed during it, or shows its times twice."""

    item: _Item
    start: datetime
    end: datetime
    changes: bool

    def obstacle(self, day: date) -> str | None:
        """Why it is no event of ``day``; None where it is one."""
        midnight = datetime.combine(day, time())
        if self.item.cancelled:
            return "cancelled"
        if self.item.all_day or (self.start.time() == self.end.time() == time() and self.length):
            return "all-day"
        if self.length < timedelta(0):
            return "ending before its start"
        if self.start < midnight or self.end > midnight + _ONE_DAY:
            return "over midnight"
        if self.changes:
            return "while the clocks change"
        return None if self.length else "without length"

    @property
    def length(self) -> timedelta:
        return self.end - self.start

    def entry(self) -> Entry:
        """The occurrence as an event of the day of its start."""
        day = datetime.combine(self.start.date(), time())
        start, end = ((moment - day) // timedelta(minutes=1) for moment in (self.start, self.end))
        return Entry(self.item.name, start, end, self.item.priority, self.item.categories)


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
    items = list(_items(calendars, left_out))
    zone, label = _zone(calendars, items, zone_name)
    firsts = set()
    for item in items:
        firsts.update(islice(_dates(item, zone, None, left_out), 1))
    notes = []
    if day is None and firsts:
        day = min(firsts)
        only = len(firsts) == 1 and not any(item.recurs for item in items)
        which = "only" if only else "first"
        notes.append(f"Asked is {day:%A}, {day}, the {which} day with events.")
    if label:
        notes.append(f"Times are those of {label}.")
    unknown = {item.label: "" for item in items if not (item.zone or item.all_day) and item.label}
    notes += [
        f"Time zone {cleaned(one)} is unknown; its times stand as they are." for one in unknown
    ]
    entries = []
    for item in items if day else ():
        for found in _occurrences(item, zone, day, day + _ONE_DAY, left_out):
            if reason := found.obstacle(day):
                left_out[reason][id(item)] = item.name
            else:
                entries.append(found.entry())
    lost = [f"Left out, {why}: {listed(list(names.values()))}." for why, names in left_out.items()]
    if entries:
        return entries, notes + lost
    none = f"{source} has no events that can be asked"
    if day is not None and firsts:
        for item in items:
            firsts.update(_dates(item, zone, day, left_out))
        near = sorted(sorted(firsts, key=lambda other: (abs(other - day), other))[:_NAMED])
        none += f" on {day}; the nearest dates with some are {', '.join(map(str, near))}"
    raise UserError(" ".join([f"{none}.", *lost]).rstrip("."))


def _parsed(text: str, source: str) -> list[Component]:
    """The components of a file, VCALENDARs as a rule."""
    tzp.use_default()  # forgets the zones of calendars read before
    try:
        with warnings.catch_warnings():
            # Zones that are guessed from a longer name; the notes name the zone.
            warnings.simplefilter("ignore")
            found = Calendar.from_ical(text.strip() + "\n", multiple=True)
    except (*_BROKEN, OSError) as error:
        reason = cleaned(str(error))
        raise UserError(f"{source} is a broken calendar ({reason}); export it again") from None
    if not found:
        raise UserError(f"{source} is a broken calendar (its end is missing); export it again")
    if not any(calendar.walk("VEVENT") for calendar in found):
        raise UserError(f"{source} is a calendar without events")
    return found


def _items(calendars: Iterable[Component], left_out: LeftOut) -> Iterator[_Item]:
    """The events in their newest version, each without the occurrences that others replace."""
    versions: defaultdict[tuple[str, str], list[tuple[Component, bool]]] = defaultdict(list)
    replaced: defaultdict[str, list[datetime | date]] = defaultdict(list)
    for calendar in calendars:
        void = str(_one(calendar, "METHOD") or "").upper() == "CANCEL"
        for event in calendar.walk("VEVENT"):
            uid, again = str(_one(event, "UID") or id(event)), _one(event, "RECURRENCE-ID")
            if isinstance(again, vDDDTypes) and isinstance(again.dt, date):
                replaced[uid].append(again.dt)
            versions[uid, str(again)].append((event, void))
    for (uid, _), events in versions.items():
        newest = max(_number(event, "SEQUENCE") for event, _ in events)
        # Twice the same event is one event.
        different = {
            tuple(str(event.get(key)) for key in ("DTSTART", "DTEND", "SUMMARY")): (event, void)
            for event, void in events
            if _number(event, "SEQUENCE") == newest
        }
        for event, void in different.values():
            try:
                yield _item(event, void, () if "RECURRENCE-ID" in event else replaced[uid])
            except _UnreadableError as reason:
                left_out[str(reason)][id(event)] = str(_one(event, "SUMMARY") or "")


def _one(component: Component, key: str) -> Any:
    """A property, the first one where it is there several times; None where it is missing."""
    value = component.get(key)
    return value[0] if isinstance(value, list) else value


def _number(event: Component, key: str) -> int:
    """A whole number; 0 where it is missing or spoilt, as RFC 5545 has it for those we read."""
    value = _one(event, key)
    return int(value) if isinstance(value, int) else 0


def _item(event: Component, void: bool, replaced: Iterable[datetime | date]) -> _Item:
    """A VEVENT as an _Item.

    Raises:
        _UnreadableError: when its times or what it says of its recurrences cannot be read.
    """
    try:
        start, end = event.start, event.end
        if not isinstance(start, datetime):
            all_day, zone, wall = True, None, datetime.combine(start, time())
            length = end - start
        else:
            all_day, zone, wall = False, start.tzinfo, start.replace(tzinfo=None, fold=0)
            # An end without a zone of its own is in that of the start.
            length = _absolute(end, zone) - _absolute(start, zone)
        years = {wall.year, (wall + length).year}
        exdates, categories = list(event.exdates), tuple(map(str, event.categories))
    except _BROKEN:
        raise _UnreadableError("without times that can be read") from None
    if not years <= set(_YEARS):
        raise _UnreadableError(f"not between {_YEARS[0]} and {_YEARS[-1]}")
    again = _one(event, "RECURRENCE-ID")
    if "EXRULE" in event or (again is not None and "RANGE" in again.params):
        raise _UnreadableError("with a recurrence of a form that is not followed")
    return _Item(
        name=str(_one(event, "SUMMARY") or ""),
        start=wall,
        length=length,
        zone=zone,
        label=_one(event, "DTSTART").params.get("TZID") or (zone and "UTC"),
        all_day=all_day,
        cancelled=void or str(_one(event, "STATUS") or "").upper() == "CANCELLED",
        priority=1 <= _number(event, "PRIORITY") <= 4,
        categories=categories,
        event=event,
        without=frozenset(_moment(moment, zone) for moment in (*exdates, *replaced)),
    )


def _absolute(moment: datetime, zone: tzinfo | None) -> datetime:
    """A time in UTC; a floating one is read on the clock of ``zone``, if any."""
    moment = moment.replace(tzinfo=moment.tzinfo or zone)
    return moment.astimezone(UTC) if zone else moment.replace(tzinfo=None)


def _moment(value: datetime | date, zone: tzinfo | None) -> datetime | date:
    """What an excluded or replaced occurrence is known by: its time in UTC, or its date."""
    return _absolute(value, zone) if isinstance(value, datetime) else value


def _zone(
    calendars: Sequence[Component], items: Sequence[_Item], name: str | None
) -> tuple[tzinfo | None, str | None]:
    """The zone whose clock is read and its name; None where all times are floating.

    Raises:
        UserError: when no zone is called ``name``.
    """
    if name is not None:
        zone = _zone_named(name)
        if zone is None:
            near = nearest(name, sorted(zoneinfo.available_timezones()))
            raise UserError(f"--timezone: {name!r} is no time zone such as Europe/Berlin{near}")
    zoned = [item for item in items if item.zone]
    if not zoned:
        return None, None
    if name is not None:
        return zone, name
    for calendar in calendars:
        named = str(_one(calendar, "X-WR-TIMEZONE") or "")
        if found := _zone_named(named):
            return found, cleaned(named)
    counted = Counter(item.label for item in zoned if item.label != "UTC")
    label = counted.most_common(1)[0][0] if counted else "UTC"
    return next(item.zone for item in zoned if item.label == label), cleaned(str(label))


def _zone_named(name: str) -> tzinfo | None:
    try:
        return tzp.timezone(name) if name else None
    except (OSError, ValueError):  # the name of a folder, or no name at all
        return None


def _dates(item: _Item, zone: tzinfo | None, day: date | None, left_out: LeftOut) -> Iterator[date]:
    """Dates on which the item can be asked: around ``day``, or from its first occurrence on."""
    if item.all_day or item.cancelled:
        return
    low, high = date(_YEARS[0], 1, 1), date(_YEARS[-1], 12, 31)
    if day is not None:
        low, high = max(low, day - _AROUND), min(high, day + _AROUND)
    for found in islice(_occurrences(item, zone, low, high, left_out), _FIRST):
        if found.obstacle(found.start.date()) is None:
            yield found.start.date()


def _occurrences(
    item: _Item, zone: tzinfo | None, low: date, high: date, left_out: LeftOut
) -> Iterator[_Occurrence]:
    """The occurrences that take place from ``low`` on and before ``high``, in order of start."""
    first, last = (datetime.combine(end, time()) for end in (low, high))
    # Two zones differ by less than two days.
    early, late = first - max(item.length, timedelta(0)) - 2 * _ONE_DAY, last + 2 * _ONE_DAY
    try:
        for count, start in enumerate(_starts(item, early, late)):
            if count >= _MOST:
                raise _UnreadableError("since it recurs too often")
            if _moment(start, item.zone) in item.without or start.date() in item.without:
                continue
            found = _placed(item, start, zone)
            if found.start < last and (found.end > first or found.start >= first):
                yield found
    except _UnreadableError as reason:
        left_out[str(reason)][id(item)] = item.name


def _placed(item: _Item, start: datetime, zone: tzinfo | None) -> _Occurrence:
    """The occurrence that starts at ``start`` on the item's clock, on the clock of ``zone``. Its
    length is exact, also where the clocks change (RFC 5545, section 3.3.10)."""
    begun = _absolute(start, item.zone)
    ends = [begun, begun + item.length]
    if item.zone is None or zone is None:
        changes = False
    else:
        ends = [moment.astimezone(zone) for moment in ends]
        changes = any(moment.fold for moment in ends)
        ends = [moment.replace(tzinfo=None, fold=0) for moment in ends]
        changes = changes or ends[1] - ends[0] != item.length
    begin, end = (moment.replace(second=0, microsecond=0) for moment in ends)
    return _Occurrence(item, begin, end, changes)


def _starts(item: _Item, early: datetime, late: datetime) -> Iterator[datetime]:
    """When the item occurs from ``early`` to ``late``, on its own clock, each time once.

    Raises:
        _UnreadableError: when a recurrence cannot be read.
    """
    try:
        series = [_series(item, rule, late) for rule in _all(item.event, "RRULE")]
        dates = sorted(
            datetime.combine(moment, item.start.time())
            if not isinstance(moment, datetime)
            else _wall(moment, item.zone)
            for moment, _ in item.event.rdates
        )
        before = None
        for start in heapq.merge([item.start], dates, *series):
            if start != before and early <= start <= late:
                yield start
            before = start
    except _BROKEN:
        raise _UnreadableError("with a recurrence that cannot be read") from None


def _all(component: Component, key: str) -> list[Any]:
    value = component.get(key, [])
    return value if isinstance(value, list) else [value]


def _wall(moment: datetime, zone: tzinfo | None) -> datetime:
    """A time on the clock of ``zone``, without it."""
    return (moment.astimezone(zone) if moment.tzinfo and zone else moment).replace(tzinfo=None)


def _series(item: _Item, rule: Any, late: datetime) -> Iterator[datetime]:
    """What an RRULE gives up to ``late``. COUNT and UNTIL are seen to here, since dateutil knows no
    rule with both an end of ours and a COUNT, and none with an UNTIL in UTC on a bare clock.

    Raises:
        ValueError, KeyError, TypeError, IndexError: when it cannot be followed.
    """
    frequency = rule["FREQ"][0].upper()
    if frequency in _TOO_OFTEN or min(rule.get("INTERVAL", [1])) < 1:
        raise ValueError(rule)
    if frequency == "HOURLY" and any(key in rule for key in _DAYS):
        raise ValueError(rule)
    if until := rule.get("UNTIL"):
        end = until[0]
        whole = not isinstance(end, datetime)
        late = min(late, datetime.combine(end, time.max) if whole else _wall(end, item.zone))
    bare = type(rule)({key: value for key, value in rule.items() if key not in ("UNTIL", "COUNT")})
    begin, late = (moment.replace(year=moment.year + _ERA) for moment in (item.start, late))
    found = rrulestr(bare.to_ical().decode(), dtstart=begin).replace(until=late)
    back = (moment.replace(year=moment.year - _ERA) for moment in found)
    return islice(back, *rule.get("COUNT", [None]))
