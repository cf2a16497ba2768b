"""The parser: what it reads, what it calls the rest, how fast, and that nothing breaks it."""

import random
import re
from collections import Counter
from xml.etree import ElementTree

import pytest
from answers import kinds
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import brute_force, day, kept, minutes, tier_problems, weighted
from running import within

from data.clock import CLOCK
from data.event import Event
from data.problem import Problem
from data.prompts import answer, narration, schedule_xml
from data.solver import optimal_schedule
from data.tiers import TIERS
from rewards.parse import _MARK, ParseFailure, opened_reasoning, parse, parse_leniently, reopened
from rewards.verify import Status, verify

ART = "<event><name>Art</name><start>09:00</start><end>10:00</end></event>"


@pytest.mark.parametrize(
    ("body", "events"),
    [
        (ART.replace("Art", "B") + ART, (Event(540, 600, "B"), Event(540, 600, "Art"))),
        ("", ()),
        ("\n \t\r\n", ()),
        # It does not judge what it reads.
        (ART.replace("10:00", "08:00") + ART, (Event(540, 480, "Art"), Event(540, 600, "Art"))),
        # Blanks around names and times do not matter.
        (ART.replace("Art", " \n Art\t").replace("09:00", " 09:00\r\n"), (Event(540, 600, "Art"),)),
    ],
)
def test_a_schedule_is_read_as_it_was_answered(body, events):
    assert parse(f"<schedule>{body}</schedule>") == events


def test_only_the_1440_ascii_times_are_times():
    def read(time: str):
        return parse(f"<schedule>{ART.replace('09:00', time)}</schedule>")

    for minute, text in enumerate(CLOCK):
        assert read(text) == (Event(minute, 600, "Art"),)
    for hour in range(100):
        for minute in range(100):
            text = f"{hour:02d}:{minute:02d}"
            if text not in CLOCK:
                assert read(text) == ParseFailure.MALFORMED_TIME
    zeros = [i for i in range(0x110000) if chr(i).isdecimal() and int(chr(i)) == 0 and i != 48]
    assert len(zeros) > 50, "every script's digits"
    for zero in zeros:
        assert read(f"0{chr(zero + 9)}:00") == ParseFailure.MALFORMED_TIME
        assert read(f"09:{chr(zero)}0") == ParseFailure.MALFORMED_TIME


MEGABYTE = 1_000_000


def fill(piece: str, before: str = "", after: str = "") -> str:
    return before + piece * (MEGABYTE // len(piece)) + after


OPEN, CLOSE = "<schedule>", "</schedule>"
HOSTILE = {
    "nothing but <schedule>": fill(OPEN),
    "schedules in turn": fill(OPEN + CLOSE),
    "nothing but <think>": fill("<think>"),
    "reasoning in turn": fill("<think></think>"),
    "unterminated reasoning": fill("blah ", "<think>"),
    "half tags": fill("<schedule"),
    "half end tags": fill("</schedul", OPEN),
    "angle brackets": fill("<", OPEN, CLOSE),
    "events without end": fill("<event>", OPEN, CLOSE),
    "names without end": fill("<event><name>", OPEN, CLOSE),
    "a long name without end": fill("a", OPEN + "<event><name>", CLOSE),
    "a long name": fill("a", OPEN + "<event><name>", ART[16:] + CLOSE),
    "a long start of blanks": fill(" ", OPEN + "<event><name>a</name><start>", ART[35:] + CLOSE),
    "a long end": fill("1", OPEN + ART[:48], "</end></event>" + CLOSE),
    "blanks": fill(" ", OPEN, CLOSE),
    "blanks before an event": fill(" ", OPEN, ART + CLOSE),
    "blanks after an event": fill("\n", OPEN + ART, CLOSE),
    "blanks in an event": fill(" ", OPEN + "<event>", "<nam>" + CLOSE),
    "blanks between all tags": OPEN + ART.replace("><", ">" + " " * 250_000 + "<") + "." + CLOSE,
    "other blanks": fill("\u2003", OPEN, CLOSE),
    "valid events": fill(ART, OPEN, CLOSE),
    "valid events without end": fill(ART, OPEN),
    "valid events, the last one broken": fill(ART, OPEN, "<event>" + CLOSE),
    "events of another time": fill(ART.replace("09:00", "24:00"), OPEN, CLOSE),
    "gold over and over": fill(f"<think>so</think>{OPEN}{ART}{CLOSE}"),
    "junk after gold": fill("<event>", OPEN + ART + CLOSE),
    "zeros": fill("\0", OPEN, CLOSE),
    "halves of special tokens": fill("<|"),
    "messages": fill("<|end|><|start|>assistant"),
    "comments without end": fill("<!--", ART),
    "attributes": fill("name='a' ", "<event ", ">"),
    "a number as an entity": fill("1", OPEN + "<event><name>&#", ";" + ART[16:]),
    "blanks in a tag": fill(" ", "<", "event>"),
    "closing tags": fill("</a>`", "<think>" + CLOSE, "x"),
    "lone surrogates": fill("\ud800", OPEN + "<event><name>", "</name>" + CLOSE),
    "right to left": fill("\u202e", "", OPEN + ART + CLOSE),
    "combining characters": fill("\u0301", OPEN + "<event><name>a", ART[16:]),
    "digits": fill("9", OPEN + ART[:30], ART[35:] + CLOSE),
}


@pytest.mark.parametrize("shape", HOSTILE)
def test_a_megabyte_of_hostile_text_is_judged_in_no_time_and_in_few_words(shape):
    text = HOSTILE[shape]
    assert len(text) >= 0.9 * MEGABYTE
    assert isinstance(parse(text), tuple | ParseFailure)
    verdict = verify(day(), text)
    assert verdict.status is not Status.OPTIMAL
    assert sum(map(len, verdict.violations)) < 10_000
    assert within(0.1, lambda: parse(text))
    assert within(0.2, lambda: verify(day(), text))
    assert within(0.5, lambda: parse_leniently(text))


# --- fuzzing ---------------------------------------------------------------------------------

SOUP = (
    "<think>", "</think>", "<schedule>", "</schedule>", "<event>", "</event>", "<name>", "</name>",
    "<start>", "</start>", "<end>", "</end>", "<", ">", "/", "\n", " ", "\u00a0", "09:00", "24:00",
    "9:5", "٠٩:٠٠", "&amp;", "<!--", "```xml\n", "\0", "\ud800", "茶", "😀", "e\u0301", ART,
    "<reasoning>", "</reasoning>", "[THINK]", "[/THINK]", "<|im_end|>",
)  # fmt: skip


def mutate(rng: random.Random, text: str, other: str) -> str:
    """``text`` with one accident: something lost, doubled, moved, put in or taken from ``other``.
    Half of them happen at tags, where they hurt most."""
    places = [i for i, c in enumerate(text) if c == "<"] if rng.random() < 0.5 else None
    if places:
        i, j = sorted((rng.choice(places), rng.choice(places)))
    else:
        i, j = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
    old, new = CLOCK[rng.randrange(1440)][:2], CLOCK[rng.randrange(1440)][:2]
    return rng.choice(
        (
            text[:i] + text[j:],
            text[:j] + text[i:j] + text[j:],
            text[:i],
            text[i:],
            text[:i] + rng.choice(SOUP) + text[i:],
            text[:i] + rng.choice(SOUP) + text[i + 1 :],
            text[:i] + other[i:],
            "".join(rng.choices(SOUP, k=rng.randint(1, 12))) + text[i:j],
            text.replace(rng.choice(SOUP), rng.choice(SOUP), rng.randint(1, 3)),
            text.replace(f">{old}", f">{new}"),
        )
    )


def read_anew(completion: str) -> list[tuple[str, str, str]]:
    """The final schedule, read by an XML parser: another reader of the same form."""
    turn = completion.split("<|im_end|>")[0]
    final = re.split(r"</think>|</reasoning>|\[/THINK\]", turn)[-1]
    [_, rest] = final.split("<schedule>")
    body = rest.split("</schedule>")[0].replace("&", "&amp;")
    root = ElementTree.fromstring(f"<schedule>{body}</schedule>")
    assert not (root.text or "").strip()
    found = []
    for event in root:
        assert event.tag == "event"
        assert [child.tag for child in event] == ["name", "start", "end"]
        assert not "".join([event.text or "", event.tail or "", *(c.tail or "" for c in event)]
                           ).strip()  # fmt: skip
        found.append(tuple(child.text.strip() for child in event))
    return found


def is_optimal(problem: Problem, completion: str) -> bool:
    """Whether a completion is an optimal answer, by nothing of the code under test."""
    chosen = []
    for name, start, end in read_anew(completion):
        [event] = [e for e in problem.events if e.name == name]
        if (start, end) != (CLOCK[event.start], CLOCK[event.end]):
            return False
        chosen.append(event)
    starts = [event.start for event in chosen]
    busy = 0
    for event in chosen:
        if busy & minutes(event):
            return False
        busy |= minutes(event)
    total = sum(weighted(problem, event) for event in chosen)
    sound = starts == sorted(starts) and kept(problem, tuple(chosen))
    return sound and total == brute_force(problem)[0]


def test_100_000_fuzzed_completions_survive_and_none_is_wrongly_called_optimal():
    rng = random.Random(6)
    problems = [problem for tier in TIERS for problem in tier_problems(tier, 7)]
    texts = []
    for problem in problems:
        gold = optimal_schedule(problem)
        texts.append(answer(gold, narration(problem, gold) if len(texts) % 2 else None))
    met = Counter()
    for _ in range(100_000):
        at = rng.randrange(len(problems))
        text = texts[at]
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            text = mutate(rng, text, rng.choice(texts))
        found = parse(text)
        assert isinstance(found, ParseFailure) or all(type(event) is Event for event in found)
        verdict = verify(problems[at], text)
        met[verdict.status] += 1
        met.update(kinds(verdict.violations))
        if verdict.status is Status.OPTIMAL:
            assert is_optimal(problems[at], text), text
    expected = {*Status, *ParseFailure, "unknown_event", "altered_time", "duplicate", "empty",
                "not_chronological", "overlap"}  # fmt: skip
    few = {kind for kind in expected if met[kind] < 50}
    assert few == {ParseFailure.CUT_OFF}, met  # no text says that of itself


NAMES = st.text(st.characters(exclude_characters="<"), min_size=1).filter(
    lambda name: name == name.strip() and not _MARK.search(name)  # an event called [THINK]
)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 1439), st.integers(0, 1439), NAMES), max_size=6))
def test_whatever_is_rendered_is_read_back(items):
    schedule = tuple(Event(*item) for item in items)
    assert parse(schedule_xml(schedule)) == schedule
    assert parse(answer(schedule, "because")) == schedule


# --- reasoning by other marks, and the end of a turn ------------------------------------------

GOLD, DRAFT = (schedule_xml(events) for events in (day().events[:2], day().events[2:3]))


@pytest.mark.parametrize(
    "text",
    [
        f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>"
        f"{GOLD}<|return|>",
        f"analysisMaybe {DRAFT}assistantfinal{GOLD}",
        f"<reasoning>{DRAFT}</reasoning>{GOLD}</s>",
        f"<thinking>{DRAFT}</think>{DRAFT}</thinking>{GOLD}",
        f"[THINK]{DRAFT}[/THINK]{GOLD}",
        f"{DRAFT}◁/think▷{GOLD}",  # opened by the template
        f"<seed:think>{DRAFT}</seed:think>{GOLD}<seed:eos>",
        f"<|channel>thought\n{DRAFT}<channel|>{GOLD}<turn|>",
        f"<|START_THINKING|>{DRAFT}<|END_THINKING|>{GOLD}<|END_OF_TURN_TOKEN|>",
        f"{GOLD}<|im_end|>\n<|im_start|>user\nAgain<|im_end|>\n<|im_start|>assistant\n{DRAFT}",
        f"<|im_start|>assistant\n{GOLD}<|end|><|user|>{DRAFT}",
    ],
)
def test_the_answer_is_what_follows_the_reasoning_of_any_model_in_its_own_turn(text):
    assert parse(text) == parse_leniently(text) == day().events[:2]


@pytest.mark.parametrize(
    "opened",
    ["<reasoning>", "[THINK]", "◁think▷", "<think>", "analysisSo ",
     "<|channel|>analysis<|message|>"],
)  # fmt: skip
def test_reasoning_that_never_closes_is_no_answer_unless_leniently_a_schedule_ends_it(opened):
    cut, whole = f"{opened}{GOLD}\nNow check", f"{opened}{GOLD}\n```\n"
    assert parse(cut) == parse(whole) == parse_leniently(cut) == "unterminated_reasoning"
    assert parse_leniently(whole) == parse_leniently(cut, ended=True) == day().events[:2]
    assert opened_reasoning(f"user: plan\n{opened}\n") == ("" if "So" in opened else opened.replace(
        "<|message|>", ""))  # fmt: skip
    assert parse(reopened(GOLD)) == "unterminated_reasoning"
    assert parse(reopened(f"{DRAFT}[/THINK]{GOLD}")) == day().events[:2]


# --- reading what can be read --------------------------------------------------------------


def replaced(*pairs: tuple[str, str]) -> str:
    text = GOLD
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize(
    "text",
    [
        replaced(("<schedule>\n", "")),
        replaced(("</schedule>", "")),
        replaced(("</event>", "</event> and then ")),
        replaced(("</event>\n", "\n")),
        replaced(("</name>", "")),
        replaced(("<schedule>", "<schedule>\n</schedule>\n<schedule>")),
        f"{DRAFT} or rather {GOLD}",
        replaced(("</schedule>", f"<!-- not {DRAFT} --></schedule>")),
        replaced(("<start>", "<!-- when --><start>")),
        replaced(("schedule>", "SCHEDULE>"), ("event>", "Event >"), ("<name", "< Name")),
        replaced(("<event>", '<event id="1">'), ("<schedule>", "<schedule date='today'>")),
        replaced(("</event>", "<priority>1</priority></event>"), ("<event>", "<event><id>1</id>")),
        "<event name='Art' start='9:00' end='10 AM'/><Event name=\"Band\" start=\"09:30\" "
        'end="11:00"></Event>',
        replaced(("09:00", "9:00"), ("10:00", "10:00:00")),
        replaced(("09:00", "9:00 AM"), ("10:00", "10\u202fa.m."), ("11:00", "11：00")),
        replaced(("09:00", "2026-03-02T09:00:00")),
        f"<think>so\n{GOLD}\n</think>\n",
        f"<think>so</think>{GOLD}</think><|im_end|>",
        replaced(("Art", "<![CDATA[Art]]>"), ("Band", "\u200bBand\u00a0")),
        replaced(("Art", "**Art**"), ("Band", "&#66;and")),
        replaced(("<", "&lt;"), (">", "&gt;")),
        replaced(("\n", "\u3000\ufeff")),
    ],
)
def test_a_lenient_reader_reads_what_the_strict_one_refuses(text):
    assert parse(text) != parse_leniently(text) == parse_leniently(GOLD) == day().events[:2]


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("no answer", ParseFailure.NO_SCHEDULE),
        (f"<think>{GOLD}</think>As above.", ParseFailure.NO_SCHEDULE),
        (f"<think>{GOLD} or not</think>", ParseFailure.UNTERMINATED_REASONING),
        (ART[:-8], ParseFailure.MALFORMED_EVENT),
        (ART.replace("<name>", "<name>Band</name><name>"), ParseFailure.MALFORMED_EVENT),
        *(
            (ART.replace("09:00", time), ParseFailure.MALFORMED_TIME)
            for time in ("9", "09:00:30", "25:00", "13:00 AM", "0９:00", "-9:00")
        ),
    ],
)
def test_what_a_lenient_reader_cannot_read_has_a_name_too(text, failure):
    assert parse_leniently(text) == failure
