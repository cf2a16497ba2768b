"""That the tests can fail: a verifier or a reward made weaker on purpose is noticed, by a panel of
answers to one day or by the audit."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise

import pytest
from answers import CORRUPTIONS, HARMLESS
from problems import day
from test_rules import EXAMPLES, on_the_day

import data.problem
import rewards.parse
import rewards.reward
import rewards.verify
from data.clock import MINUTE
from data.draw import make_problem
from data.event import Event
from data.problem import Problem
from data.prompts import answer, schedule_xml
from data.rules import BASE_RULES, KINDS, Chronological, NoOverlap, NotEmpty
from data.sections import RewardSection
from data.solver import interval_optimum, prove
from data.tiers import TIERS
from rewards.audit import audit
from rewards.reward import totals
from rewards.verify import DisagreementError, Status, Verdict, confirm, verify, verify_text

Weakening = Callable[[pytest.MonkeyPatch], None]


def forget_judgements() -> None:
    for remembered in (verify_text, confirm):
        remembered.cache_clear()


@pytest.fixture(autouse=True)
def nothing_remembered():
    """Judgements are cached: none from before a weakening may answer for it, nor after it."""
    forget_judgements()
    yield
    forget_judgements()


def panel() -> list[str]:
    """Names of the cases that are not judged as they must be."""
    problem = day()
    gold = interval_optimum(problem)
    optimal = Verdict(Status.OPTIMAL, (), 180, 180)
    art, band, _, _, chess = problem.events
    cases = {name: (make(problem, gold), optimal) for name, make in HARMLESS.items()}
    cases["half of gold"] = schedule_xml(gold[:2]), Verdict(Status.FEASIBLE, (), 90, 180)
    cases["second best"] = schedule_xml((band, chess)), Verdict(Status.FEASIBLE, (), 150, 180)
    cases["one event"] = answer((art,), "so"), Verdict(Status.FEASIBLE, (), 60, 180)
    for name, make in CORRUPTIONS.items():
        completion, broken = make(problem, gold)
        read = isinstance(PARSE(completion), tuple)
        status = Status.INFEASIBLE if read else Status.UNPARSABLE
        cases[name] = completion, Verdict(status, broken, 0, 180)
    wrong = []
    for name, (completion, expected) in cases.items():
        try:
            verdict = verify(problem, completion)
        except (AssertionError, KeyError):  # it beats the optimum, or has no value: noticed too
            verdict = None
        if verdict != expected:
            wrong.append(name)
    return wrong


PARSE = rewards.parse.parse
VIOLATIONS = rewards.verify.violations
VERIFY_SCHEDULE = rewards.verify.verify_schedule


@cache
def audited() -> dict[str, list[Problem]]:
    return {
        tier: [make_problem(2, "audit", tier, TIERS[tier], i) for i in range(8)]
        for tier in ("dense", "rules")
    }


def failures(shape: str = "graded") -> str:
    """What the audit says; that it stops at a contradiction says enough."""
    try:
        return "\n".join(audit(RewardSection(shape), audited(), 0).failures)
    except (AssertionError, DisagreementError) as error:
        return str(error)


def parse_as(change: Callable[[str], str]) -> Weakening:
    """Read a changed text."""
    return lambda patch: patch.setattr("rewards.verify.parse", lambda text: PARSE(change(text)))


def read_as(change: Callable[[tuple[Event, ...]], tuple[Event, ...]]) -> Weakening:
    """Judge a changed schedule."""

    def parse(text: str):
        found = PARSE(text)
        return change(found) if isinstance(found, tuple) else found

    return lambda patch: patch.setattr("rewards.verify.parse", parse)


def overlook(kind: str) -> Weakening:
    """Leave one kind of violation unsaid."""
    return lambda patch: patch.setattr(
        "rewards.verify.violations",
        lambda *pair: tuple(v for v in VIOLATIONS(*pair) if not v.startswith(kind)),
    )


def rule_says(kind: type, says: Callable) -> Weakening:
    return lambda patch: patch.setattr(kind, "violations", says)


def times_by(read: Callable[[str], int]) -> Weakening:
    """Take for a time whatever ``read`` makes minutes of, instead of looking it up."""

    class Lenient(dict):
        def __contains__(self, text):
            try:
                return 0 <= read(text) <= 1440
            except ValueError:
                return False

        def __getitem__(self, text):
            return read(text)

    return lambda patch: patch.setattr("rewards.parse.MINUTE", Lenient(MINUTE))


def first_two_numbers(text: str) -> int:
    hours, minutes = re.split(r"\D", text)[:2]
    return 60 * int(hours) + int(minutes)


def touching_is_overlap(rule, schedule):
    for a, b in combinations(schedule, 2):
        if a.start <= b.end and b.start <= a.end and a.name != b.name:
            yield f"overlap: {a.name} / {b.name}"


def only_neighbours_overlap(rule, schedule):
    for a, b in pairwise(schedule):
        if b.start < a.end and a.start < b.end and a.name != b.name:
            yield f"overlap: {a.name} / {b.name}"


def nothing(rule, schedule):
    return iter(())


def find_events(body: str):
    """Every well-formed event, whatever stands between them."""
    return tuple(
        Event(MINUTE[m[2].strip()], MINUTE[m[3].strip()], m[1].strip())
        for m in rewards.parse._EVENT.finditer(body)
        if m[2].strip() in MINUTE and m[3].strip() in MINUTE
    )


def any_case(schedule: tuple[Event, ...]) -> tuple[Event, ...]:
    names = {name.casefold(): name for name in day().by_name}
    return tuple(Event(e.start, e.end, names.get(e.name.casefold(), e.name)) for e in schedule)


def generous(problem, schedule) -> Verdict:
    verdict = VERIFY_SCHEDULE(problem, schedule)
    return replace(verdict, status=Status.OPTIMAL) if verdict.ratio > 0.8 else verdict


def last_schedule(text: str) -> str:
    return text[text.rfind("<schedule>") :] if "<schedule>" in text else text


#: (the weakening, a case it must be noticed by, what the audit says of it if anything)
WEAKENINGS: dict[str, tuple[Weakening, str, str | None]] = {
    "touching counts as overlap": (
        rule_says(NoOverlap, touching_is_overlap), "gold itself", "calls 'gold' infeasible"
    ),
    "overlaps are not seen": (
        rule_says(NoOverlap, nothing), "overlap", "beats the proven optimum"
    ),
    "only neighbours are compared": (
        rule_says(NoOverlap, only_neighbours_overlap), "overlap", None
    ),
    "order is not checked": (
        rule_says(Chronological, nothing), "swapped order", "calls 'unsorted gold' optimal"
    ),
    "an empty schedule is fine": (
        rule_says(NotEmpty, nothing), "empty", r"call \[\] feasible \[\], CP-SAT does not"
    ),
    "duplicates are allowed": (
        overlook("duplicate"), "more events than there are", "beats the proven optimum"
    ),
    "duplicates are dropped": (
        read_as(lambda schedule: tuple(dict.fromkeys(schedule))),
        "more events than there are", "calls 'duplicated events' optimal",
    ),
    "altered times are accepted": (
        overlook("altered_time"),
        "start a minute late", "calls 'gold with a time shifted' optimal",
    ),
    "unknown events are not named": (overlook("unknown_event"), "unknown event", None),
    "names are read in any case": (read_as(any_case), "name in capitals", None),
    "answers are sorted first": (
        read_as(lambda schedule: tuple(sorted(schedule))), "swapped order", None
    ),
    "the reasoning is read too": (
        parse_as(lambda text: re.sub("</?think>", "", text)),
        "gold only in the reasoning", "calls 'gold only in the reasoning' optimal",
    ),
    "unterminated reasoning is read": (
        parse_as(lambda text: text if "</think>" in text else text.replace("<think>", "")),
        "unterminated reasoning", "calls 'reasoning without end' optimal",
    ),
    "the last of many schedules counts": (
        parse_as(last_schedule), "two schedules", "calls 'two schedules' optimal"
    ),
    "the first of many schedules counts": (
        parse_as(lambda text: text.partition("</schedule>")[0] + "</schedule>"),
        "good schedule before a bad one", "calls 'two schedules gold first' optimal",
    ),
    "an unterminated schedule is closed": (
        parse_as(lambda text: text + "</schedule>"),
        "unterminated schedule", "calls 'cut off gold' optimal",
    ),
    "tags are read in any case": (
        parse_as(lambda text: re.sub("</?[A-Za-z]+>", lambda m: m[0].lower(), text)),
        "schedule tag in capitals", None,
    ),
    "junk between events is passed over": (
        lambda patch: patch.setattr("rewards.parse._parse_events", find_events),
        "junk after an event", "calls 'words between the events' optimal",
    ),
    "hours of one digit and seconds are times": (
        times_by(first_two_numbers), "time with seconds", None
    ),
    "any script's digits are digits": (
        times_by(lambda text: 60 * int(text[:2]) + int(text[3:])),
        "time in Arabic digits", "calls 'look alike times' optimal",
    ),
    "times are stripped of any blank": (
        times_by(lambda text: MINUTE.get(text.strip(), -1)), "time with a hard blank", None
    ),
    "priorities count once": (
        lambda patch: patch.setattr(data.problem, "PRIORITY_WEIGHT", 1), "gold itself", None
    ),
    "nearly optimal is optimal": (
        lambda patch: patch.setattr("rewards.verify.verify_schedule", generous),
        "second best", "calls '[a-z -]+' optimal",
    ),
    "prose around the schedule is refused": (
        parse_as(lambda text: text if text.endswith("</schedule>") else ""), "prose after", None
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WEAKENINGS)
def test_a_weaker_verifier_is_noticed(name, monkeypatch):
    weaken, case, said = WEAKENINGS[name]
    audited()  # made by the rules as they stand
    weaken(monkeypatch)
    assert case in panel()
    if said:
        forget_judgements()
        assert re.search(said, failures())


FURTHER = sorted(set(KINDS) - {rule.kind for rule in BASE_RULES})


def rule_panel() -> list[str]:
    """Kinds of the rules of which something else is said than must be, of an answer that breaks
    the rule and nothing else, or of one that just keeps it."""
    wrong = []
    for rule, _, keeping, breaking, said in EXAMPLES:
        problem = replace(day(), rules=(*BASE_RULES, rule))
        problem = problem.proven(problem.objective(prove(problem)))
        try:
            texts = (schedule_xml(on_the_day(names)) for names in (breaking, keeping))
            judged = [verify(problem, text).violations for text in texts]
        except AssertionError:  # an answer beats the optimum: noticed too
            judged = []
        if judged != [(said,), ()]:
            wrong.append(rule.kind)
    return wrong


@pytest.mark.parametrize("kind", FURTHER)
def test_a_further_rule_ignored_is_noticed_and_fails_the_audit(kind, monkeypatch):
    tier = replace(TIERS["gap"], kinds=(kind,))  # binding: the best without the rule breaks it
    some = {kind: [make_problem(2, "audit", kind, tier, i) for i in range(4)]}
    rule_says(KINDS[kind], nothing)(monkeypatch)
    assert rule_panel() == [kind]
    with pytest.raises((AssertionError, DisagreementError)):
        audit(RewardSection("graded"), some, 0)


# --- the reward -----------------------------------------------------------------------------

#: Answers of each status and a tie, and what each shape pays for them as one group.
BAND = schedule_xml(day().events[1:2])
GOLD = schedule_xml(interval_optimum(day()))
REWORDED = answer(interval_optimum(day()), "in other words")
ANSWERS = [GOLD, REWORDED, BAND, BAND, schedule_xml(()), ""]
PAID = {
    "graded": [1, 1, 0.3, 0.3, 0.05, 0],
    "binary": [1, 1, 0, 0, 0, 0],
    "ranked": [0.9, 0.9, 0.5, 0.5, 0.2, 0],
    "passk": [0.512, 0.512, 0, 0, 0, 0],  # of the five others four are wrong, and three are drawn
    "rare": [0.9, 0.9, 0, 0, 0, 0],
}


def reward_panel() -> list[str]:
    """The shapes that pay something else than they must."""
    return [
        shape
        for shape, values in PAID.items()
        if totals(RewardSection(shape), [day().text] * len(ANSWERS), ANSWERS)
        != pytest.approx(values)
    ]


def pay(name: str, component: Callable[[Verdict], float | None]) -> Weakening:
    """Another function of the verdict in place of a component."""
    made = rewards.reward._by_verdict(component)
    return lambda patch: patch.setitem(rewards.reward._FUNCTIONS, name, made)


def pay_text(name: str, judge: Callable[[str], float]) -> Weakening:
    """A second judgement of the text in place of a component."""
    return lambda patch: patch.setitem(
        rewards.reward._FUNCTIONS, name, lambda problems, texts: [judge(text) for text in texts]
    )


def rank_by(key: Callable[[Verdict, str], tuple]) -> Weakening:
    """Ranks by something else than the verdict."""

    def ranked(problems, texts):
        keys = [key(verify_text(p, t), t) for p, t in zip(problems, texts, strict=True)]
        most = max(1, len(keys) - 1)
        return [(sum(k > other for other in keys) + (keys.count(k) - 1) / 2) / most for k in keys]

    return lambda patch: patch.setitem(rewards.reward._FUNCTIONS, "ranked", ranked)


def pay_group(name: str, judge: Callable[[float, float, int], float]) -> Weakening:
    """Pays what ``judge`` makes of an answer's pay, the most in its group, and its copies there."""
    function = rewards.reward._FUNCTIONS[name]

    def paid(problems, texts, **given):
        pays = function(problems, texts, **given)
        return [judge(p, max(pays), texts.count(t)) for p, t in zip(pays, texts, strict=True)]

    return lambda patch: patch.setitem(rewards.reward._FUNCTIONS, name, paid)


def objective_kept(patch: pytest.MonkeyPatch) -> None:
    """An infeasible answer keeps the weighted minutes of what it lists, and they are paid."""

    def kept(problem, schedule):
        verdict = VERIFY_SCHEDULE(problem, schedule)
        known = [e for e in schedule if problem.by_name.get(e.name) == e]
        return replace(verdict, objective=problem.objective(known))

    patch.setattr("rewards.verify.verify_schedule", kept)
    pay("ratio", lambda verdict: verdict.ratio)(patch)


#: (the weakening, the shape it is of, what the audit says, or None where only the panel sees it)
REWARD_WEAKENINGS: dict[str, tuple[Weakening, str, str | None]] = {
    "an infeasible answer keeps its minutes": (
        objective_kept, "graded", "'copy every event' earns .* more than a random feasible"
    ),
    "every schedule is valid": (pay("validity", rewards.reward.format), "graded", None),
    "what is nearly optimal is paid as optimal": (
        pay("optimal", lambda v: float(v.ratio > 0.8)), "binary", "does not follow the verdict"
    ),
    "what is not feasible is paid as optimal": (
        pay("optimal", lambda v: float(v.status != Status.FEASIBLE)),
        "binary", "'empty' earns 1.000 .* 100% of gold's reward",
    ),
    "every end of a schedule is paid": (
        pay_text("format", lambda text: float(text.count("</schedule>"))),
        "graded", "the best spoilt answer of the search earns",
    ),
    "optimal is what claims to be": (
        pay_text("optimal", lambda text: float("optimal" in text)),
        "binary", "'verdict claimed' earns 1.000",
    ),
    "events are counted in the text": (
        pay_text("ratio", lambda text: text.count("<event>") / 4),
        "graded", "'gigantic output' earns",
    ),
    "ties in rank are broken by length": (
        rank_by(lambda v, text: (*rewards.reward.order(v), -len(text))),
        "ranked", "does not follow the verdict",
    ),
    "status alone is ranked": (
        rank_by(lambda v, text: (rewards.reward.order(v)[0],)),
        "ranked", "'shortest valid answer' earns .* the ceiling is 50%",
    ),
    "ranks go by the number of violations": (
        rank_by(lambda v, text: (-len(v.violations), v.ratio)),
        "ranked", "does not follow the verdict",
    ),
    "what the others of its group find is paid to a wrong answer too": (
        pay_group("passk", lambda paid, most, copies: paid or 0.6 * most),
        "passk", "of gold's reward; the ceiling is 50%",
    ),
    "a right answer among right ones earns nothing": (
        pay_group("passk", lambda paid, most, copies: paid * (paid > 0.5)),
        "passk", "does not follow the verdict",
    ),
    "being rare is paid, right or wrong": (
        pay_group("rare", lambda paid, most, copies: paid or 1 / copies),
        "rare", "does not follow the verdict",
    ),
    "other words are another answer": (
        pay_group("rare", lambda paid, most, copies: paid and 1 / copies),
        "rare", None,
    ),
}  # fmt: skip


def test_every_panel_and_the_audit_pass_as_the_code_stands():
    assert panel() == rule_panel() == reward_panel() == []
    assert [failures(shape) for shape in PAID] == [""] * len(PAID)


@pytest.mark.parametrize("name", REWARD_WEAKENINGS)
def test_a_weaker_reward_is_noticed(name, monkeypatch):
    weaken, shape, said = REWARD_WEAKENINGS[name]
    weaken(monkeypatch)
    if said is None:
        assert reward_panel() == [shape]
    else:
        assert re.search(said, failures(shape))
