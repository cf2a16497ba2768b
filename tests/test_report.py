import base64
import hashlib
import json
import random
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import day, random_problem, tier_problems

from data.common.errors import UserError
from data.common.files import MANIFEST, read_jsonl, sha256, write_json, write_jsonl
from data.event import Event
from data.policies import random_maximal
from data.prompts import answer, schedule_xml
from data.recipe import load_recipe
from data.rows import read_split, record
from data.rules import BASE_RULES, MustInclude
from eval import elicitation
from eval import report as page
from eval.answers import likelihood
from eval.answers.judge import score_rows
from eval.answers.roles import cases
from eval.elicitation import Asked
from eval.show import sheets as findings
from eval.show.charts import MOST_POINTS, Bars, Curve, Look, Panel, draw_panels, nice_ticks, thinned
from eval.show.showcase import CUT, MOST, PER_CELL, choose, drawn_answer, drawn_problem, lanes
from eval.show.tables import read_result
from eval.stats.conclusion import Conclusion
from eval.stats.summary import summarise, tally
from rewards.verify import Status, verify

ARMS = ("base", "sft", "grpo.1", "grpo.2")
SAMPLES = 8
HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>",
    "<!-- <script> \u2028\u2029 \ud800 \x00 '\"&amp; {{ 7 * 7 }} {% raw %}",
    "\u202egnp.exe <a href='https://example.com'>https://example.com</a>",
)
RECIPE = """
name: small
seed: 3
model: some/model
data:
  main: dense
  tiers: {dense: {train: 1, val: 1, test: 9}, trap: {train: 1, val: 1, test: 3}}
arms:
  sft: {trainer: sft}
  grpo: {trainer: grpo, start: sft, seeds: [1, 2]}
conclusion: {arms: [grpo, sft], fresh: 16, margins: {resamples: 100}}
eval: {samples: 8}
sft: {}
grpo: {}
"""


def recipe_of(folder, entries=None):
    """The recipe of these tests; with other arms, ``{entry: seeds}``."""
    path = folder / "recipe.yaml"
    text = RECIPE
    if entries:
        arms = "".join(f"  {name}: {{trainer: sft, seeds: {s}}}\n" for name, s in entries.items())
        text = RECIPE.partition("arms:")[0] + f"arms:\n{arms}sft: {{}}\ngrpo: {{}}\n"
    path.write_text(text)
    return load_recipe(path)


def answers_of(arm, problem, rng):
    """SAMPLES completions: right, random, everything, cut short, miscopied, hostile."""
    first = problem.events[0]
    moved = Event(first.start, first.end - 1, first.name)
    gold = record("", "", "", problem, False)["gold"]
    options = [
        gold,
        schedule_xml(random_maximal(problem, rng)),
        schedule_xml(problem.events),
        gold[: len(gold) // 2],
        schedule_xml([moved]),
        HOSTILE[rng.randrange(len(HOSTILE))] + gold,
        answer(problem.events[:1], HOSTILE[0]),
        "x" * (3 * CUT),
    ]
    weights = [4 if arm.startswith("grpo") else 1, 2, 1, 1, 1, 1, 1, 0.3]
    return rng.choices(options, weights, k=SAMPLES)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A run with every piece, but for the conclusion."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "small.yaml").write_text(RECIPE)
    run = folder / "runs" / "small"
    problems = {
        f"test-{tier}-{i}": (tier, problem)
        for tier, count in (("dense", 9), ("trap", 3))
        for i, problem in enumerate(tier_problems(tier, count))
    }
    rows = [record(name, "test", tier, p, False) for name, (tier, p) in problems.items()]
    write_jsonl(run / "data" / "test.jsonl", rows)
    write_json(run / "data" / MANIFEST, {})
    verdicts = {}
    for arm in ARMS:
        samples = [
            {"id": name, "arm": arm, "sample": i, "completion": text, "finish_reason": "stop",
             "tokens": 9}
            for name, (_, problem) in problems.items()
            for i, text in enumerate(answers_of(arm, problem, random.Random(f"{arm} {name}")))
        ]  # fmt: skip
        verdicts[arm] = list(score_rows({n: p for n, (_, p) in problems.items()}, samples))
        write_jsonl(run / "eval" / arm / "samples.jsonl", samples)
        write_jsonl(run / "eval" / arm / "verdicts.jsonl", verdicts[arm])
        if arm != "base":
            write_jsonl(run / arm / "log.jsonl", log_of(arm))
    shares = {
        "random_maximal": {1: 0.2, 2: 0.4, 8: 0.7},
        "greedy_by_start": dict.fromkeys((1, 2, 8), 0.1),
    }
    floors = {"dense": shares, "trap": shares}
    report = summarise(
        ["dense", "trap"], "dense", ARMS, floors, verdicts,
        {name: tier for name, (tier, _) in problems.items()}, 3,
        [("grpo.1", "sft"), ("grpo.1", "base")], 200,
    )  # fmt: skip
    write_json(run / "eval" / "report.json", report)
    paths = [run / "eval" / arm / "samples.jsonl" for arm in ARMS]
    inputs = {path.relative_to(folder).as_posix(): sha256(path) for path in paths}
    write_json(run / "eval" / MANIFEST, {"settings": {}, "inputs": inputs})
    return folder


def log_of(arm):
    for step in range(5, 55, 5):
        row = {"step": step, "loss": 1 / step, "grad_norm": 0.1, "entropy": 0.3}
        if arm.startswith("grpo"):
            row |= {
                "reward": step / 100,
                "rewards/optimal/mean": 0.1,
                "kl": None if step == 20 else 1,
            }
        yield row
    yield {"step": 50, "train_runtime": 1.0}


@pytest.fixture(scope="module")
def conclusion_json(built):
    """The conclusion on that run, by the code that makes it but for the models' probabilities."""
    rng = np.random.default_rng(5)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(built)
        patch.setattr(elicitation, "likelihoods", lambda *_: {"dense": likelihoods(rng)})
        recipe = load_recipe(built / "small.yaml")
        asked = read_split(recipe.run, "test")
        tiers = {row["id"]: row["tier"] for row in asked}
        first = {}
        for arm in ARMS:
            path = recipe.run.eval / arm / "verdicts.jsonl"
            found = tally(arm, map(json.loads, path.open()), tiers)
            first[arm] = (np.array(found.samples), np.array(found.optimal))
        fresh = {arm: (np.full(12, 16), rng.binomial(16, c / n)) for arm, (n, c) in first.items()}
        report = elicitation.report_on(
            recipe, cases(recipe, ARMS), ARMS, Asked(asked, first, fresh)
        )
    write_json(built / "conclusion.json", report)
    return json.loads((built / "conclusion.json").read_text())


def likelihoods(rng):
    """In the shape that ``eval.elicitation`` gives them, of answers with made-up probabilities."""

    def scored():
        return [
            likelihood.Scored(np.log(rng.random(6)), rng.random(6), rng.random(6) < 0.1)
            for _ in range(18)
        ]

    report = {}
    for arm in ARMS:
        under = {name: scored() for name in dict.fromkeys(("base", "sft", arm))}
        found = likelihood.summarise([i // 2 for i in range(18)], arm, under, rng, 100)
        report[arm] = {"tokens_as_drawn": 1.0, **found}
    return report


def make_page(folder, report=None, force=False):
    """The text of the page of the run in ``folder``, with a conclusion where one is given."""
    found = folder / "runs" / "small" / "eval"
    if report is not None:
        write_json(found / "elicitation" / "elicitation.json", report)
        write_json(found / "elicitation" / MANIFEST, {"settings": {}, "inputs": {}})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        page.run(load_recipe(folder / "small.yaml"), force)
    return (found / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def run(built, tmp_path):
    """A copy of the run to work in; calling it makes the page and returns its text."""
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)

    def make(report=None, force=False):
        return make_page(tmp_path, report, force)

    make.folder = tmp_path / "runs" / "small"
    return make


@pytest.fixture(scope="module")
def whole(built, conclusion_json, tmp_path_factory):
    """The page of the run with its conclusion, to be read; ``pictures`` is the folder beside it."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(built, folder, dirs_exist_ok=True)
    found = Reader(make_page(folder, conclusion_json))
    found.pictures = folder / "runs" / "small" / "eval" / "report.files"
    return found


class Reader(HTMLParser):
    """Elements as (tag, attributes), the texts of scripts and styles, and all other text; fails
    where a tag is closed that is not the last one opened."""

    VOID = ("meta", "link", "br", "img", "input", "hr")

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.raw, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.text += " " if tag in ("td", "th") else ""
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            self.raw.append((self.open[-1], self.elements[-1][1], data))
        else:
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def ids(self):
        return [a["id"] for _, a in self.elements if "id" in a]

    @property
    def island(self):
        [text] = [t for tag, a, t in self.raw if a.get("type") == "application/json"]
        return json.loads(text)


def test_the_page_is_whole_html_with_every_section(whole):
    sections = {"passk", "elicitation", "answers", "training", "samples", "tables"}
    assert sections <= set(whole.ids)
    assert len(whole.ids) == len(set(whole.ids))
    referred = [a["href"][1:] for a in whole.all("a")]
    referred += [name for _, a in whole.elements for name in a.get("aria-labelledby", "").split()]
    assert set(referred) <= set(whole.ids)
    assert all("aria-labelledby" in a for a in whole.all("svg") if a.get("role") == "img")
    assert whole.all("html")[0]["lang"] == "en"


def test_the_page_loads_nothing_and_runs_only_its_own_script(run):
    found = Reader(run())
    loading = ("src", "srcset", "href", "data", "action", "poster", "xlink:href")
    targets = [a[key] for _, a in found.elements for key in loading if key in a]
    assert all(target.startswith("#") or target == "data:," for target in targets)
    styles = "".join(text for tag, _, text in found.raw if tag == "style")
    assert not re.search(r"url\(|@import|https?:", styles)
    assert not any(key.startswith("on") for _, a in found.elements for key in a)
    [script] = [text for tag, a, text in found.raw if tag == "script" and "type" not in a]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)
    [policy] = [a["content"] for a in found.all("meta") if "http-equiv" in a]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_hostile_completions_stay_text_and_come_back_whole(run):
    text = run()
    assert "alert(1)</script>" not in text
    assert "<img" not in text
    shown = Reader(text).island["answers"]
    samples = {
        (arm, row["id"], row["sample"]): row["completion"]
        for arm in ARMS
        for row in map(json.loads, (run.folder / "eval" / arm / "samples.jsonl").open("rb"))
    }
    problems = [p["id"] for p in Reader(text).island["problems"]]
    for one in shown:
        whole = samples[one["arm"], problems[one["problem"]], one["sample"]]
        assert one["text"] == whole[:CUT]
        assert one["cut"] == max(0, len(whole) - CUT)
    for hostile in HOSTILE:
        assert any(hostile in one["text"] for one in shown), "a test that tests nothing"


def test_hostile_words_in_the_conclusion_are_escaped(run, conclusion_json):
    hostile = json.loads(json.dumps(conclusion_json))
    hostile["sentence"] = "Elicited: <i>nothing</i> new & GRPO gains +12.3 [+10.0, +15.0] points."
    hostile["judged"]["grpo"]["overall"]["notes"] = ["it <em>lost</em> nothing"]
    reflection = hostile["tiers"]["dense"]["reasoning"]["sft"]["reflection"]
    reflection["keywords"] = {"<img src=x>": 3}
    found = Reader(run(hostile))
    assert not {"i", "em", "img"} & {tag for tag, _ in found.elements}
    assert "Elicited: <i>nothing</i> new & GRPO gains +12.3\u00a0[+10.0,\u00a0+15.0] points." in (
        found.text
    )
    assert "it <em>lost</em> nothing." in found.text
    assert "<img src=x> 3" in found.text


def test_every_arm_tier_and_status_that_is_shown_can_be_filtered_for(run):
    found = Reader(run())
    data = found.island
    options = {a.get("value") for a in found.all("option")}
    labels = set(re.findall(r"[\w-]+", found.text))
    for one in data["answers"]:
        assert one["arm"] in options
        assert one["status"] in labels
        assert data["problems"][one["problem"]]["tier"] in labels
    assert {"filter-arm", "filter-tier", "filter-status"} <= set(found.ids)
    seen = {
        (o["arm"], data["problems"][o["problem"]]["tier"], o["status"]) for o in data["answers"]
    }
    judged = {
        (arm, row["id"].split("-")[1], row["status"])
        for arm in ARMS
        for row in map(json.loads, (run.folder / "eval" / arm / "verdicts.jsonl").open())
    }
    assert seen == judged


def test_what_the_page_says_of_its_choice_is_so(run):
    text = run()
    shown = Reader(text).island["answers"]
    sentence = f"{len(shown)} of {12 * SAMPLES * len(ARMS)} answers, to 12 problems"
    assert sentence in text
    solved = Counter()
    for arm in ARMS:
        for row in map(json.loads, (run.folder / "eval" / arm / "verdicts.jsonl").open()):
            solved[arm, row["id"]] += row["status"] == "optimal"
    problems = Reader(text).island["problems"]
    for one in shown:
        assert one["solved"] == [solved[one["arm"], problems[one["problem"]]["id"]], SAMPLES]


def rows(problems, samples, rng, statuses=tuple(Status)):
    return [
        {"id": name, "sample": i, "status": str(rng.choice(statuses)), "violations": []}
        for name in problems
        for i in range(samples)
    ]


def test_the_choice_is_balanced_and_the_same_for_any_order_of_problems():
    tier_of = {f"p{i}": "dense" if i < 30 else "trap" for i in range(40)}
    verdicts = {a: rows(tier_of, 4, random.Random(a)) for a in ARMS}
    choice = choose(verdicts, tier_of, 1)
    assert choice.each == PER_CELL
    assert choice.total == 40 * 4 * len(ARMS)
    cells = Counter((r["arm"], tier_of[r["id"]], r["status"]) for r in choice.rows)
    assert set(cells.values()) == {PER_CELL}
    assert len(cells) == len(ARMS) * 2 * 4
    again = {
        a: sorted(found, key=lambda r: (r["id"], r["sample"])) for a, found in verdicts.items()
    }
    assert choose(again, dict(sorted(tier_of.items())), 1).rows == choice.rows
    assert choose(verdicts, tier_of, 2).rows != choice.rows


def test_arms_are_shown_on_the_same_problems():
    tier_of = dict.fromkeys((f"p{i}" for i in range(50)), "dense")
    verdicts = {a: rows(tier_of, 2, random.Random(a), ["feasible"]) for a in ARMS}
    chosen = choose(verdicts, tier_of, 1).rows
    assert len({r["id"] for r in chosen}) == PER_CELL


def test_many_arms_share_the_limit():
    tier_of = dict.fromkeys((f"p{i}" for i in range(20)), "dense")
    verdicts = {f"arm{i}": rows(tier_of, 8, random.Random(i)) for i in range(50)}
    choice = choose(verdicts, tier_of, 1)
    assert choice.each == 1
    assert len(choice.rows) == 200 <= MOST


def test_the_page_stays_within_a_few_megabytes_whatever_is_in_the_answers():
    # Every character of a completion may be escaped to six bytes.
    assert 6 * MOST * CUT < 5e6
    problem = day()
    text = "<" * 10 * CUT + schedule_xml(problem.events[:1] * 50_000)
    verdict = {"arm": "a", "sample": 0, **verify(problem, text).to_json()}
    drawn = drawn_answer(problem, verdict, {"completion": text})
    assert len(json.dumps(drawn)) < 6000
    assert len(drawn["strays"]) == 9
    assert drawn["more_strays"] == 50_000 - 10


def drawn(problem, text):
    verdict = {"arm": "a", "sample": 0, **verify(problem, text).to_json()}
    return drawn_answer(problem, verdict, {"completion": text})


def test_chosen_overlapping_and_broken_events_are_marked():
    problem = day()
    found = drawn(problem, schedule_xml([e for e in problem.events if e.name in ("Art", "Band")]))
    assert (found["chosen"], found["overlapping"], found["broken"]) == ([0, 1], [0, 1], [0, 1])
    found = drawn(problem, schedule_xml([problem.events[1], problem.events[4]]))
    assert (found["chosen"], found["overlapping"], found["broken"]) == ([1, 4], [], [])
    assert found["status"] == "feasible"


def test_events_not_as_they_were_asked_are_strays_and_overlap_like_others():
    problem = day()
    art = problem.events[0]
    wrong = [Event(540, 570, "Art"), Event(560, 600, "Arts"), problem.events[4], problem.events[4]]
    found = drawn(problem, schedule_xml(wrong))
    assert found["chosen"] == [4]
    named = [(name, what, overlaps, broken) for name, _, _, what, overlaps, broken, *_ in (
        found["strays"])]  # fmt: skip
    assert named == [
        ("Art", "other times", True, True),
        ("Arts", "no such event", True, True),
        ("Chess", "listed again", False, True),
    ]
    assert found["broken"] == [4], f"{art} itself was not chosen"


def test_an_event_that_a_rule_demands_is_marked_though_not_chosen():
    problem = day()
    problem = type(problem)(
        problem.events, problem.priorities, (*BASE_RULES, MustInclude("Echo")), 150
    )
    assert drawn(problem, schedule_xml(problem.events[:1]))["broken"] == [3]


def test_an_unreadable_answer_chooses_nothing():
    found = drawn(day(), "I would rather not.")
    assert (found["chosen"], found["strays"], found["violations"]) == ([], [], ["no_schedule"])


def test_a_problem_is_drawn_with_priorities_and_the_optimal_schedule():
    problem = day()
    found = drawn_problem({"problem": problem, **record("x", "test", "t", problem, True)
                           | {"problem": problem}})  # fmt: skip
    assert (found["from"], found["to"]) == (540, 720)
    by_name = {name: rest for name, *rest in found["events"]}
    assert [n for n, rest in by_name.items() if rest[3]] == ["Chess"]
    assert [n for n, rest in by_name.items() if rest[4]] == ["Art", "Drill", "Echo", "Chess"]
    assert by_name["Chess"][:3] == [660, 690, 60]


def test_no_two_events_of_a_lane_overlap_and_no_lane_is_wasted():
    for seed in range(200):
        events = random_problem(random.Random(seed)).events
        found = lanes(events)
        for i, (lane, of) in enumerate(found):
            assert 0 <= lane < of
            beside = [j for j, e in enumerate(events) if j != i and e.overlaps(events[i])]
            assert all(found[j][0] != lane and found[j][1] == of for j in beside)
        at_once = max(sum(e.start <= e2.start < e.end for e in events) for e2 in events)
        assert max(of for _, of in found) == at_once


def test_without_logs_samples_or_conclusion_their_sections_are_left_out(run):
    for arm in ARMS:
        shutil.rmtree(run.folder / arm, ignore_errors=True)
        (run.folder / "eval" / arm / "samples.jsonl").unlink()
    found = Reader(run())
    assert not {"training", "samples", "elicitation", "data"} & set(found.ids)
    assert found.all("script") == []
    assert "What training did" in found.text
    assert "pass@1: grpo.1 - SFT = " in found.text
    assert not (run.folder / "eval" / "report.files" / "training.png").exists()


def test_an_arm_without_samples_is_left_out_of_the_browser_alone(run):
    (run.folder / "eval" / "sft" / "verdicts.jsonl").unlink()
    found = Reader(run())
    assert {one["arm"] for one in found.island["answers"]} == {"base", "grpo.1", "grpo.2"}


def words(text):
    return " ".join(text.replace("\u00a0", " ").split())


def shown(estimate, sign=""):
    """An estimate in % or points, from its definition."""
    value, low, high = (
        f"{round(100 * estimate[key], 1) + 0.0:{sign}.1f}" for key in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]"


def test_the_conclusion_stands_first_and_all_conclusions_right_below(whole, conclusion_json):
    text = words(whole.text)
    judged = conclusion_json["judged"]
    verdicts = {
        name: [one["overall"]["conclusion"], *(t["conclusion"] for t in one["tiers"].values())]
        for name, one in judged.items()
    }
    assert f"The conclusion {conclusion_json['sentence']} overall dense trap" in text
    assert f"GRPO {' '.join(verdicts['grpo'])} SFT {' '.join(verdicts['sft'])}" in text
    assert {"judged-1", "judged-2"} <= set(whole.ids)


def test_a_single_judged_arm_needs_no_table_of_conclusions(run, conclusion_json):
    alone = {**conclusion_json, "judged": {"grpo": conclusion_json["judged"]["grpo"]}}
    text = run(alone)
    assert "The conclusion" in text
    assert "Conclusions by arm and tier" not in text


def test_a_conclusion_is_shown_with_all_that_it_rests_on(whole, conclusion_json):
    text = words(whole.text)
    for arm, judged in conclusion_json["judged"].items():
        for ruling in (judged["overall"], *judged["tiers"].values()):
            assert f"Decided by {ruling['reason']}." in text
            for note in ruling["notes"]:
                assert note in text
            for estimate in ruling["estimates"].values():
                assert shown(estimate, "+") in text
        for tier in judged["tiers"].values():
            assert shown(tier["pass_at_1"]["base"]) in text
            assert shown(tier["pass_at_1"][arm]) in text
            for member, table in tier["two_by_two"].items():
                name = page.label(member)
                assert (
                    f"{name} solves does not base solves {table['both']} {table['only_base']} "
                    f"base does not {table['only_tuned']} {table['neither']} Exact McNemar test of "
                    f"{table['only_tuned']} against {table['only_base']}: p = {table['p']:.2g}."
                ) in text
                crossing, gap = tier["crossing"][member], tier["gap"][member]
                k, low, high = (crossing[e] or "beyond 8" for e in ("k", "low", "high"))
                assert (
                    f"{name} {k} [{low}, {high}] {100 * crossing['beyond']:.0f} % {shown(gap, '+')}"
                ) in text
                grown, shrunk = tier["expansion"][member], tier["shrinkage"][member]
                assert f"{name} where base failed {grown['unsolved']} of " in text
                assert f"base where {name} failed {shrunk['unsolved']} of " in text
                assert shown(grown["share"], "+") in text
                assert shown(shrunk["share"], "+") in text


def test_every_arm_is_shown_on_each_tier(whole, conclusion_json):
    text = words(whole.text)
    for one in conclusion_json["detectable"].values():
        assert words(one["sentence"]) in text
    for tier in conclusion_json["tiers"].values():
        for key in ("coverage", "floor_adjusted"):
            for name, row in tier[key].items():
                cells = ("no room" if e is None else shown(e) for e in row.values())
                assert f"{page.label(name)} {' '.join(cells)}" in text
        for arm, one in tier["reasoning"].items():
            assert f"{page.label(arm)} {shown(one['reasoning'])}" in text
    assert "problems of grpo.1 by accuracy: 0: " in text
    assert "KL divergence to base, in nats" in text
    under = conclusion_json["tiers"]["dense"]["likelihood"]["grpo.1"]["under"]["grpo.1"]
    assert f"grpo.1 {findings._number(under['log_likelihood']['per_token'])}" in text
    assert shown(under["answers_outside"]) in text
    assert (whole.pictures / "accuracy.png").stat().st_size > 5000


def test_a_tier_without_probabilities_has_no_tables_of_them(whole, conclusion_json):
    assert not conclusion_json["tiers"]["trap"]["likelihood"]
    assert whole.text.count("Entropy, KL divergence and likelihood of the answers") == 1


def test_second_thoughts_are_held_against_success(conclusion_json, tmp_path):
    looks = page.looks_of(recipe_of(tmp_path), ARMS)
    quiet = findings.view(conclusion_json, looks)["tiers"][0]
    assert quiet["reflection"] == []
    changed = json.loads(json.dumps(conclusion_json))
    estimate = {"value": 0.25, "low": 0.1, "high": 0.4, "n": 9}
    reflection = changed["tiers"]["dense"]["reasoning"]["grpo.2"]["reflection"]
    reflection |= {
        "keywords": {"wait": 31, "check again": 1},
        "with": {"answers": 32, "share": estimate, "optimal": estimate},
        "within_problem": estimate | {"value": -0.2, "low": -0.5},
    }
    [sheet] = findings.view(changed, looks)["tiers"][0]["reflection"]
    [row] = sheet.rows
    assert row[:3] == ["grpo.2", "32 (25.0 %)", "25.0 [10.0, 40.0]"]
    assert row[-2:] == ["-20.0 [-50.0, +40.0]", "wait 31, check again 1"]


def test_every_conclusion_is_explained():
    assert set(findings.MEANINGS) == set(Conclusion)


def test_quantities_keep_their_sign_and_unit():
    assert findings._number({"value": -0.00001, "low": -0.25, "high": 21.4444}) == "0 [-0.25, 21.4]"
    assert findings._number(None) == ""


def test_seeds_of_an_entry_share_a_colour_and_no_two_arms_look_alike(tmp_path):
    entries = {f"arm{i}": [1, 2, 3] for i in range(6)}
    recipe = recipe_of(tmp_path, entries)
    arms = ["base", *(f"{name}.{seed}" for name, seeds in entries.items() for seed in seeds)]
    looks = page.looks_of(recipe, arms)
    assert len({(looks[arm].marker, looks[arm].turn) for arm in arms}) == len(arms) == 19
    for name, seeds in entries.items():
        assert {looks[f"{name}.{seed}"].colour for seed in seeds} == {looks[name].colour}
    assert len({looks[name].colour for name in ("base", *entries)}) == 7
    families = page.families(arms, looks)
    assert [number for number, _ in families] == list(range(7))
    assert [name for name, _ in families[1][1]] == ["arm0.1", "arm0.2", "arm0.3"]


def test_each_family_of_arms_can_be_hidden(run):
    text = run()
    found = Reader(text)
    boxes = {a["data-of"] for a in found.all("input")}
    drawn = {
        c for _, a in found.elements for c in a.get("class", "").split() if c.startswith("of-")
    }
    assert boxes == {"0", "1", "2"}
    assert drawn == {f"of-{number}" for number in boxes}
    for number in boxes:
        assert f'[data-of="{number}"]:not(:checked)) .of-{number} {{ display: none; }}' in text


def test_the_page_and_its_pictures_are_the_same_each_time(run, conclusion_json):
    first = run(conclusion_json)
    pictures = run.folder / "eval" / "report.files"
    before = {p.name: p.read_bytes() for p in pictures.glob("*.png")}
    assert run(force=True) == first
    assert {p.name: p.read_bytes() for p in pictures.glob("*.png")} == before
    assert set(before) == {"training.png", "accuracy.png"}


def test_the_page_is_made_again_only_when_something_changed(run, capsys, conclusion_json):
    run()
    run()
    assert "up to date" in capsys.readouterr().out
    assert "The conclusion" in run(conclusion_json)
    (run.folder / "eval" / "report.html").unlink()
    assert "The conclusion" in run()


def test_a_conclusion_that_was_not_finished_is_not_shown(run, conclusion_json):
    run(conclusion_json)
    (run.folder / "eval" / "elicitation" / MANIFEST).unlink()
    assert "The conclusion" not in run()


def test_a_conclusion_on_other_answers_than_the_report_s_is_left_out_with_a_word(
    run, conclusion_json, capsys
):
    run(conclusion_json)
    path = run.folder / "eval" / "grpo.1" / "verdicts.jsonl"
    name = path.relative_to(run.folder.parents[1]).as_posix()
    manifest = {"settings": {}, "inputs": {name: sha256(path)}}
    write_json(run.folder / "eval" / "elicitation" / MANIFEST, manifest)
    assert "The conclusion" in run()
    assert "left out" not in capsys.readouterr().out
    write_jsonl(path, [{**row, "note": "judged anew"} for _, row in read_jsonl(path)])
    assert "The conclusion" not in run()
    assert "the conclusion is missing, or of other answers than these" in capsys.readouterr().out
    path.unlink()
    assert "The conclusion" not in run()


def test_answers_that_were_not_judged_are_not_shown_with_older_verdicts(run):
    run()
    path = run.folder / "eval" / "grpo.1" / "samples.jsonl"
    write_jsonl(path, [{**row, "completion": "I do not know"} for _, row in read_jsonl(path)])
    with pytest.raises(
        UserError, match=r"grpo\.1/samples\.jsonl is not judged yet, or has changed"
    ):
        run()


def test_how_the_answers_were_drawn_is_said_whatever_the_recipe_says_now(run):
    def asked(arm, temperature):
        way = {"temperature": temperature, "top_p": 0.9}
        manifest = {"settings": {}, "inputs": {}, "asking": way}
        write_json(run.folder / "eval" / arm / MANIFEST, manifest)

    for arm in ARMS:
        write_json(run.folder / "eval" / arm / MANIFEST, {"settings": {}, "inputs": {}})
    assert "sampling" not in Reader(run()).text, "an earlier version did not say"
    for arm in ARMS:
        asked(arm, 0.3)
    assert "samplingT = 0.3, top-p = 0.9" in words(Reader(run()).text)
    asked("sft", 0.6)
    said = "base, grpo.1, grpo.2: T = 0.3, top-p = 0.9; SFT: T = 0.6, top-p = 0.9"
    assert said in words(Reader(run()).text)


def test_a_broken_conclusion_is_named(run):
    with pytest.raises(UserError, match=r"elicitation\.json must be a JSON object; delete it, and"):
        run([])


def test_without_a_report_the_way_out_is_said(run):
    (run.folder / "eval" / MANIFEST).unlink()
    with pytest.raises(UserError, match=r"report\.json .* `make eval` writes it"):
        run()


def test_a_broken_report_is_named(run):
    for text in ("{", "[" * 100_000):
        (run.folder / "eval" / "report.json").write_text(text)
        with pytest.raises(UserError, match=r"report\.json is not valid JSON .*; delete it, and"):
            run()


@pytest.mark.parametrize("which", ["report.json", "elicitation/elicitation.json"])
def test_a_result_that_was_changed_is_one_sentence(which, run, conclusion_json):
    """Whatever was changed in it: a value of another type would be found nowhere else."""
    run(conclusion_json)
    path = run.folder / "eval" / which
    manifest = path.with_name(MANIFEST)
    facts = json.loads(manifest.read_text())
    write_json(manifest, {**facts, "hashes": {path.name: sha256(path)}})
    run(force=True)
    path.write_text(path.read_text().replace('"value": 0', '"value": "0"', 1))
    with pytest.raises(UserError) as raised:
        run()
    assert str(raised.value).endswith(
        f"{which} was changed since `make eval` wrote it; delete it, and `make eval` writes it "
        "again"
    )


def keys(value, at=()):
    """The way to every key of nested JSON, of what is alike (arms, tiers, list items) to one."""
    parts = value.items() if isinstance(value, dict) else enumerate(value[:1])
    for key, part in parts:
        if isinstance(value, dict):
            yield (*at, key)
        if isinstance(part, dict | list) and key not in (*ARMS[1:], "trap"):
            yield from keys(part, (*at, key))


@pytest.mark.parametrize(("which", "every"), [("report", 1), ("elicitation", 8)])
def test_a_result_that_lacks_a_key_is_one_sentence(which, every, run, conclusion_json, tmp_path):
    """Whichever key it is: the page is made without it, or it is named."""
    run(conclusion_json)
    recipe, folder = load_recipe(tmp_path / "small.yaml"), run.folder / "eval"
    report, judged = folder / "report.json", folder / "elicitation" / "elicitation.json"
    path = {"report": report, "elicitation": judged}[which]
    text, says = path.read_text(), []
    for *way, key in list(keys(json.loads(text)))[::every]:
        content = json.loads(text)
        within = content
        for step in way:
            within = within[step]
        del within[key]
        write_json(path, content)
        try:
            page.build(recipe, read_result(report), {}, read_result(judged), None)
        except UserError as error:
            says.append((key, str(error)))
    assert len(says) > 20
    for key, said in says:
        assert said == f'{path} lacks "{key}"; delete it, and `make eval` writes it again'


def test_where_an_arm_did_not_start_from_is_said_once_on_the_page(run, conclusion_json):
    notes = [f"Note: {arm} <b> was trained otherwise." for arm in ("GRPO", "SFT", "grpo-only")]
    path = run.folder / "eval" / "report.json"
    write_json(path, {**json.loads(path.read_text()), "notes": notes[:2]})
    found = Reader(run({**conclusion_json, "notes": notes[1:]}))
    assert [found.text.count(note) for note in notes] == [1, 1, 1]


def test_verdicts_that_are_not_on_the_answers_beside_them_are_named(run):
    path = run.folder / "eval" / "base" / "verdicts.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match=r"base/verdicts\.jsonl is not of the answers beside it"):
        run()


def test_curves_keep_their_numbers_bands_and_gaps():
    curve = Curve(
        "GRPO", Look(2, 2), [(1, 0.1), (2, None), (4, 0.5)], [(0, 0.2), (0.1, 0.4), (0.3, 0.7)]
    )
    found = Panel("dense", "name", "k", [curve], percent=True, log=True, ticks=[1, 2, 4]).place()
    assert [text for _, text in found["x_ticks"]] == ["1", "2", "4"]
    left, middle, right = (x for x, _ in found["x_ticks"])
    assert middle - left == pytest.approx(right - middle, abs=0.2)
    [placed] = found["curves"]
    assert placed["line"].count("M") == 2
    assert [mark["tip"] for mark in placed["marks"]] == [
        "GRPO, k 1: 10.0 [0.0, 20.0] %",
        "GRPO, k 4: 50.0 [30.0, 70.0] %",
    ]
    assert placed["marks"][1]["y"] < placed["marks"][0]["y"], "up is more"


@pytest.mark.parametrize("points", [[(1, 0.0)], [(1, -2.0), (2, -1.0)], [(5, 1e-9), (6, 0.0)]])
def test_odd_curves_can_be_drawn(points, tmp_path):
    panel = Panel("t", "n", "step", [Curve("a", Look(0, 0), points)])
    assert "nan" not in str(panel.place())
    draw_panels(
        [panel, Bars("b", "n", Look(1, 1), [("0", 3), ("1", 0)], 3)], tmp_path / "x.png", {}
    )
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_ticks_hold_the_range():
    for low, high in ((0, 1), (0, 0.07), (-3, 2), (0, 12345), (0, 1e-6)):
        ticks = nice_ticks(low, high)
        assert ticks[0] <= low
        assert ticks[-1] >= high * 0.999
        assert 2 <= len(ticks) <= 8


def test_long_logs_are_averaged():
    points = [(i, None if i == 7 else float(i % 2)) for i in range(1200)]
    found = thinned(points)
    assert len(found) == MOST_POINTS
    assert found[1] == (19, 0.5)
    assert found[0] == (9, pytest.approx(4 / 9))
    assert thinned(points[:50]) == points[:50]


def test_loss_is_shown_only_where_no_reward_is(tmp_path):
    logs = {arm: list(log_of(arm)) for arm in ("sft", "grpo.1")}
    looks = page.looks_of(recipe_of(tmp_path), ARMS)
    panels = {panel.title: panel for panel in page.training_panels(logs, looks)}
    assert [c.label for c in panels["Loss"].curves] == ["SFT"]
    assert [c.label for c in panels["Gradient norm"].curves] == ["SFT", "grpo.1"]
    assert [c.look for c in panels["Reward"].curves] == [looks["grpo"]]
    assert (20, None) in panels["KL to the reference"].curves[0].points


def test_in_a_browser_the_first_answer_is_drawn_and_nothing_else_runs(run):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium here")
    first = Reader(run()).island["answers"][0]
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    url = (run.folder / "eval" / "report.html").as_uri()
    profile = f"--user-data-dir={run.folder / 'browser'}"
    done = subprocess.run([browser, *options, profile, url], capture_output=True, timeout=60)
    found = done.stdout.decode()
    title = re.search(r'<h3 id="sample-title"><span>([^<]*)</span>', found)
    assert title, done.stderr.decode()[-500:]
    assert title[1] == f"{page.label(first['arm'])}, answer {first['sample'] + 1}"
    assert found.count('class="event') >= len(first["chosen"])
    assert "<img" not in found.partition("<script")[0]


def test_the_page_s_folder_cannot_be_an_arm_s(tmp_path):
    for name in (page.FILES, page.PAGE):
        with pytest.raises(UserError, match="cannot be an arm's name"):
            recipe_of(tmp_path, {name: []})
