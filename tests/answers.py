"""Answers, and what must be said of them: right ones that look odd, and wrong ones with their
violations."""

from collections.abc import Callable, Iterable, Sequence

from problems import minutes

from data.clock import CLOCK
from data.event import Event, Schedule
from data.problem import Problem
from data.prompts import answer, narration, schedule_xml


def xml(*events: Sequence[str]) -> str:
    """A schedule of events given as name, start and end, whether there are such times or not."""
    body = "".join(
        f"<event>\n<name>{name}</name>\n<start>{start}</start>\n<end>{end}</end>\n</event>\n"
        for name, start, end in events
    )
    return f"<schedule>\n{body}</schedule>"


def kinds(broken: Iterable[str]) -> set[str]:
    """The kinds of violations, without their events."""
    return {text.partition(":")[0] for text in broken}


#: Makes a completion and the violations it must be given, or None where a problem has no such one.
Corruption = Callable[[Problem, Schedule], tuple[str, tuple[str, ...]] | None]
CORRUPTIONS: dict[str, Corruption] = {}
#: The end of reasoning, and a schedule without events.
END, EMPTY = "</think>", "<schedule></schedule>"
#: Makes a completion that must be judged optimal.
HARMLESS: dict[str, Callable[[Problem, Schedule], str]] = {}


def _schedule(problem: Problem, schedule: Schedule, *broken: str) -> tuple[str, tuple[str, ...]]:
    return answer(schedule, narration(problem, problem.events)), broken


def _renamed(name: str, change: Callable[[str], str]) -> None:
    def corrupt(problem: Problem, gold: Schedule) -> tuple[str, tuple[str, ...]]:
        first, *rest = gold
        other = change(first.name)
        assert other != first.name
        changed = (Event(first.start, first.end, other), *rest)
        return _schedule(problem, changed, f"unknown_event: {other}")

    CORRUPTIONS[name] = corrupt


_renamed("unknown event", lambda name: "Nothing of the kind")
_renamed("name in capitals", str.swapcase)
_renamed("letter beyond the name", lambda name: name + "s")
_renamed("letter missing", lambda name: name[:-1])
_renamed("dot after the name", lambda name: name + ".")
_renamed("empty name", lambda name: "")
_renamed(
    "Cyrillic look-alike", lambda name: name.translate(str.maketrans("aeiocypxA", "аеіосурхА"))
)
_renamed("zero-width blank in the name", lambda name: name[0] + "\u200b" + name[1:])
_renamed("hard blank before the name", lambda name: "\u00a0" + name)
_renamed("full-width letter", lambda name: chr(ord(name[0]) + 0xFEE0) + name[1:])
_renamed("priority said in the name", lambda name: name + " (priority)")


def _retimed(name: str, change: Callable[[Event], tuple[int, int]]) -> None:
    def corrupt(problem: Problem, gold: Schedule) -> tuple[str, tuple[str, ...]]:
        *rest, last = gold
        changed = (*rest, Event(*change(last), last.name))
        return _schedule(problem, changed, f"altered_time: {last.name}")

    CORRUPTIONS[name] = corrupt


_retimed("start a minute late", lambda e: (e.start + 1, e.end))
_retimed("end a minute early", lambda e: (e.start, e.end - 1))
_retimed("end a minute late", lambda e: (e.start, e.end + 1))
_retimed("start and end exchanged", lambda e: (e.end, e.start))
_retimed("end at the start", lambda e: (e.start, e.start))


def corruption(function: Corruption) -> Corruption:
    CORRUPTIONS[function.__name__.replace("_", " ")] = function
    return function


@corruption
def duplicate(problem, gold):
    if len(gold) == len(problem.events):
        return None  # one more than all events has another name, too_many_events
    return _schedule(problem, (*gold, gold[-1]), f"duplicate: {gold[-1].name}")


@corruption
def more_events_than_there_are(problem, gold):
    many = (gold[0],) * (len(problem.events) + 1)
    named = (f"too_many_events: {len(many)} of {len(problem.events)}",)
    return _schedule(problem, many, *named, *[f"duplicate: {gold[0].name}"] * (len(many) - 1))


@corruption
def swapped_order(problem, gold):
    if len(gold) < 2:
        return None
    b, a, *rest = gold
    return _schedule(problem, (a, b, *rest), f"not_chronological: {a.name} / {b.name}")


@corruption
def overlap(problem, gold):
    busy = sum(map(minutes, gold))
    others = [e for e in problem.events if e not in gold and minutes(e) & busy]
    if not others:
        return None
    extra = others[0]
    answered = tuple(sorted((*gold, extra)))
    place = answered.index(extra)
    broken = [
        f"overlap: {e.name} / {extra.name}" if i < place else f"overlap: {extra.name} / {e.name}"
        for i, e in enumerate(answered)
        if e != extra and minutes(e) & minutes(extra)
    ]
    return _schedule(problem, answered, *broken)


@corruption
def empty(problem, gold):
    return _schedule(problem, (), "empty")


@corruption
def gold_only_in_the_reasoning(problem, gold):
    return answer(gold, "").replace("</schedule>", "</schedule></think>"), ("no_schedule",)


@corruption
def gold_in_the_reasoning_and_a_bad_final_answer(problem, gold):
    return answer((), schedule_xml(gold)), ("empty",)


@corruption
def gold_before_an_end_of_reasoning_and_a_bad_final_answer(problem, gold):
    return schedule_xml(gold) + END + EMPTY, ("empty",)


def _text(name: str, reason: str, change: Callable[[str], str]) -> None:
    """A change to the text of gold that makes it unreadable."""

    def corrupt(problem: Problem, gold: Schedule) -> tuple[str, tuple[str, ...]]:
        text = answer(gold, narration(problem, gold))
        changed = change(text)
        assert changed != text
        return changed, (reason,)

    CORRUPTIONS[name] = corrupt


def _swap(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new, 1)


_text("no answer at all", "no_schedule", lambda text: "")
_text("no schedule", "no_schedule", lambda text: text.partition("<schedule>")[0])
_text("events without a schedule", "no_schedule", _swap("<schedule>", ""))
_text("schedule tag in capitals", "no_schedule", _swap("<schedule>", "<SCHEDULE>"))
_text("schedule tag with an attribute", "no_schedule", _swap("<schedule>", '<schedule day="1">'))
_text("unterminated schedule", "unterminated", _swap("</schedule>", ""))
_text("cut in the last tag", "unterminated", lambda text: text[:-1])
_text("cut in the middle", "unterminated", lambda text: text[: text.index("</name>")])
_text("unterminated reasoning", "unterminated_reasoning", _swap("</think>", ""))
_text("reasoning taken up again", "unterminated_reasoning", lambda text: text + "<think>")
_text("two schedules", "multiple_schedules", lambda text: text + text.partition("</think>")[2])
_text("bad schedule before the good one", "multiple_schedules", _swap("</think>", END + EMPTY))
_text("good schedule before a bad one", "multiple_schedules", lambda text: text + EMPTY)
_text("schedule in a schedule", "multiple_schedules", _swap("<schedule>", "<schedule><schedule>"))

for _tag in ("name", "start", "end", "event"):
    _text(f"missing </{_tag}>", "malformed_event", _swap(f"</{_tag}>", ""))
    _text(f"missing <{_tag}>", "malformed_event", _swap(f"<{_tag}>", ""))
_text("junk before the first event", "malformed_event", _swap("<event>", "First: <event>"))
_text("junk after an event", "malformed_event", _swap("</event>", "</event>,"))
_text("junk in an event", "malformed_event", _swap("</name>", "</name> at "))
_text("hard blank between events", "malformed_event", _swap("</event>", "</event>\u00a0"))
_text("nested event", "malformed_event", _swap("<event>", "<event><event>"))
_text("nested tag in a name", "malformed_event", _swap("<name>", "<name><b>"))
_text("tag with an attribute", "malformed_event", _swap("<event>", '<event id="1">'))
_text("event tag in capitals", "malformed_event", _swap("<event>", "<Event>"))
_text("further tag", "malformed_event", _swap("</event>", "<place>here</place></event>"))
_text("name twice", "malformed_event", _swap("<name>", "<name>x</name><name>"))
_text("comment", "malformed_event", _swap("<event>", "<!-- first --><event>"))
_text("code fence in the schedule", "malformed_event", _swap("<schedule>", "<schedule>\n```xml\n"))
_text("prose for a schedule", "malformed_event", lambda text: "<schedule>nothing fits</schedule>")


def _time(name: str, change: Callable[[str], str]) -> None:
    """A change to the first start that makes it no time."""

    def corrupt(problem: Problem, gold: Schedule) -> tuple[str, tuple[str, ...]]:
        good = CLOCK[gold[0].start]
        text = schedule_xml(gold).replace(f">{good}<", f">{change(good)}<", 1)
        return text, ("malformed_time",)

    CORRUPTIONS[f"time {name}"] = corrupt


def digits(zero: int) -> Callable[[str], str]:
    """The same time in another script's digits, from the code point of its zero."""
    return lambda good: good.translate({ord("0") + i: zero + i for i in range(10)})


_time("24:00", lambda good: "24:00")
_time("9:30", lambda good: "9:30")
_time("09:60", lambda good: "09:60")
_time("99:99", lambda good: "99:99")
_time("-1:00", lambda good: "-1:00")
_time("empty", lambda good: "")
_time("in full-width digits", digits(0xFF10))
_time("in Arabic digits", digits(0x0660))
_time("in bold mathematical digits", digits(0x1D7CE))
_time("with a full-width colon", lambda good: good.replace(":", "："))
_time("with seconds", lambda good: good + ":00")
_time("with a.m.", lambda good: good + " AM")
_time("with a dot", lambda good: good.replace(":", "."))
_time("without a colon", lambda good: good.replace(":", ""))
_time("with blanks inside", lambda good: good.replace(":", " : "))
_time("with a sign", lambda good: "+" + good)
_time("with a third digit", lambda good: "0" + good)
_time("with a hard blank", lambda good: good + "\u00a0")


def harmless(name: str, change: Callable[[str], str]) -> None:
    """A change to the text of gold that leaves it optimal."""
    HARMLESS[name] = lambda problem, gold: change(answer(gold, narration(problem, gold)))


harmless("gold itself", lambda text: text)
harmless("no reasoning", lambda text: text.partition("</think>\n")[2])
harmless("prose before", _swap("</think>", "</think>Here is the best day, as <b>XML</b>:"))
harmless("prose after", lambda text: text + "\nThis fills 3 < 4 hours. <event>Enjoy!</event>")
harmless("code fence", lambda text: text.replace("<schedule>", "```xml\n<schedule>") + "\n```\n")
harmless("no line breaks", lambda text: text.replace("\n", ""))
harmless("Windows line ends", lambda text: text.replace("\n", "\r\n"))
harmless("blanks between tags", lambda text: text.replace(">\n<", "> \t\n\n  <"))
harmless("blanks in tags", lambda text: text.replace("</", " </").replace("<name>", "<name>\n"))
harmless("reasoning in two parts", lambda text: "<think>first</think>" + text)
harmless("decoy in the reasoning", _swap("<think>", "<think><schedule></schedule>"))
harmless("unterminated decoy in the reasoning", _swap("<think>", "<think><schedule><event>"))
harmless("start of the reasoning in the prompt", _swap("<think>", ""))
harmless("end of the schedule twice", lambda text: text + "</schedule>")
