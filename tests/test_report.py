"""The page: whole, safe whatever a model wrote, and true to the files that it is made from."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from running import change_json, rows_in
from scripted import World

from data.common.errors import UserError
from data.common.files import MANIFEST, sha256, write_json, write_jsonl
from data.event import Event
from data.policies import random_maximal
from data.prompts import answer, schedule_xml
from data.recipe import load_recipe
from eval import elicitation, report
from eval.answers import likelihood
from eval.show.charts import looks_of, training_panels
from eval.show.elicitation_sheets import elicitation_sheets
from eval.show.report_sheets import report_sheets
from eval.show.showcase import CUT, choose_answers
from eval.show.tables import label
from eval.stats.conclusion import Conclusion
from eval.stats.estimate import cell

ARMS = ("base", "sft", "grpo.1", "grpo.2")
SAMPLES = 8
HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>",
    "<!-- <script> \u2028\u2029 \ud800 \x00 '\"&amp; {{ 7 * 7 }} {% raw %}",
    "\u202egnp.exe <a href='https://example.com'>https://example.com</a>",
)


def answer_to(row, way, rng):
    """Right, random, everything, cut short, miscopied, hostile or endless."""
    problem, gold = row["problem"], row["gold"]
    first = problem.events[0]
    options = [
        gold,
        schedule_xml(random_maximal(problem, rng)),
        schedule_xml(problem.events),
        gold[: len(gold) // 2],
        schedule_xml([Event(first.start, first.end - 1, first.name)]),
        rng.choice(HOSTILE) + gold,
        answer(problem.events[:1], HOSTILE[0]),
        "x" * (3 * CUT),
    ]
    return rng.choices(options, [2, 2, 1, 1, 1, 1, 1, 0.3])[0]


def made_up_likelihoods(models, *_, **__):
    """What ``likelihood.measure`` returns, of answers with made-up probabilities."""
    rng = np.random.default_rng(5)

    def scored():
        return [likelihood.Scored(np.log(rng.random(6)), rng.random(6)) for _ in range(18)]

    measured = {}
    for arm in models:
        under = {name: scored() for name in dict.fromkeys(("base", "sft", arm))}
        summary = likelihood.summarise([i // 2 for i in range(18)], arm, under, rng, 100)
        measured[arm] = {"tokens_as_drawn": 1.0, **summary}
    return {"dense": measured}


def log_of(arm):
    for step in range(5, 55, 5):
        row = {"step": step, "loss": 1 / step, "grad_norm": 0.1, "entropy": 0.3}
        if arm.startswith("grpo"):
            kl = None if step == 20 else 1
            row |= {"reward": step / 100, "rewards/optimal/mean": 0.1, "kl": kl}
        yield row
    yield {"step": 50, "train_runtime": 1.0}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of a run that was trained and evaluated, by the real stages but for models."""
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("runs").mkdir()
        world = World(Path(), patch)
        patch.setattr(elicitation.likelihood, "measure", made_up_likelihoods)
        world.scripts |= dict.fromkeys(ARMS, answer_to)
        world.scripts["grpo.1"] = world.scripts["grpo.2"] = lambda row, way, rng: (
            row["gold"] if rng.random() < 0.3 else answer_to(row, way, rng)
        )
        tiers = {"dense": {"train": 1, "val": 1, "test": 9}, "trap": {"train": 1, "test": 3}}
        recipe = world.recipe(
            {
                "sft": {"trainer": "sft"},
                "grpo": {"trainer": "grpo", "start": "sft", "seeds": [1, 2]},
            },
            {"arms": ["grpo", "sft"], "fresh": 16},
            data={"main": "dense", "tiers": tiers},
            eval={"samples": SAMPLES, "max_tokens": 9, "resamples": 200},
        )
        world.train(recipe)
        for arm in ARMS[1:]:
            write_jsonl(recipe.run.log(arm), log_of(arm))
        world.evaluate(recipe)
    return folder


class Made:
    """A run in a folder of its own; ``page()`` makes its page and returns the text."""

    def __init__(self, folder):
        self.folder = folder
        self.recipe = load_recipe(Path("scripted.yaml"))
        self.run = self.recipe.run
        self.elicitation = json.loads(self.run.elicitation.read_text())

    def page(self, force=False):
        report.run(self.recipe, force)
        return (self.run.eval / report.REPORT_PAGE).read_text(encoding="utf-8")

    def rewrite(self, path, content):
        """Write other content to a result, as if make eval had."""
        write_json(path, content)
        change_json(path.with_name(MANIFEST), hashes={path.name: sha256(path)})

    def rows(self, name):
        """(arm, row) of every ``samples.jsonl`` or ``verdicts.jsonl``."""
        for arm in ARMS:
            for row in rows_in(self.folder / self.run.eval / arm / name):
                yield arm, row


@pytest.fixture
def drawn(built, tmp_path, monkeypatch):
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Made(tmp_path)


@pytest.fixture
def made(drawn, monkeypatch):
    """Without the charts, which take most of a page's time."""
    for chart in ("drawn_as_png", "passk_chart"):
        monkeypatch.setattr(report, chart, lambda _: b"\x89PNG")
    return drawn


@pytest.fixture(scope="module")
def whole(built, tmp_path_factory):
    """The page of the run, read; with ``made`` from what."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(built, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        made = Made(folder)
        found = Reader(made.page())
    found.made = made
    return found


class Reader(HTMLParser):
    """Elements as (tag, attributes), the texts of scripts and styles, and all other text; fails
    where a tag is closed that is not the last one opened."""

    VOID = ("meta", "link", "br", "img", "input", "hr")

    def __init__(self, text):
        super().__init__()
        self.source = text
        self.open, self.elements, self.raw, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(self.text.replace("\u00a0", " ").split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.text += " " if tag in ("td", "th") else ""
        if tag not in self.VOID:
            self.open.append(tag)

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


# --- the page as a whole -------------------------------------------------------------------------


def test_the_page_is_whole_html_with_every_section(whole):
    sections = [a["id"] for a in whole.all("section")]
    assert sections == ["result", "training", "answers", "samples", "elicitation", "tables"]
    assert len(whole.ids) == len(set(whole.ids))
    referred = [a["href"][1:] for _, a in whole.elements if a.get("href", "").startswith("#")]
    referred += [name for _, a in whole.elements for name in a.get("aria-labelledby", "").split()]
    assert set(referred) <= set(whole.ids)
    assert [bool(a["alt"]) for a in whole.all("img")] == [True, True]
    assert whole.all("html")[0]["lang"] == "en"


def test_the_page_loads_nothing_and_runs_only_its_own_script(whole):
    loading = ("src", "srcset", "href", "data", "action", "poster", "xlink:href")
    targets = [a[key] for _, a in whole.elements for key in loading if key in a]
    assert all(target.startswith(("#", "data:")) for target in targets)
    styles = "".join(text for tag, _, text in whole.raw if tag == "style")
    styles += "".join(a.get("style", "") for _, a in whole.elements)
    assert not re.search(r"url\((?!#)|@import|https?:", styles)
    assert not any(key.startswith("on") for _, a in whole.elements for key in a)
    [script] = [text for tag, a, text in whole.raw if tag == "script" and "type" not in a]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)
    [policy] = [a["content"] for a in whole.all("meta") if "http-equiv" in a]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_without_logs_samples_or_conclusion_their_sections_are_left_out(made):
    shutil.rmtree(made.run.elicitation.parent)
    for arm in ARMS:
        made.run.log(arm).unlink(missing_ok=True)
        made.run.samples(arm).unlink()
    found = Reader(made.page())
    assert [a["id"] for a in found.all("section")] == ["result", "answers", "tables"]
    assert found.all("script") == []
    assert "pass@1: grpo.2 - SFT = " in found.text
    assert not list((made.run.eval / report.REPORT_FILES).glob("*.png"))


def test_the_page_is_the_same_each_time_and_made_again_only_when_something_changed(drawn, capsys):
    first, picture = drawn.page(), drawn.run.eval / report.REPORT_FILES / "training.png"
    before = picture.read_bytes()
    drawn.page()
    assert "up to date" in capsys.readouterr().out
    assert drawn.page(force=True) == first
    assert picture.read_bytes() == before
    log = drawn.run.log("sft")
    log.write_text(log.read_text().replace('"grad_norm": 0.1', '"grad_norm": 0.7'))
    assert drawn.page() != first
    assert picture.read_bytes() != before


# --- what models wrote ---------------------------------------------------------------------------


def test_hostile_completions_stay_text_and_come_back_whole(whole):
    assert "alert(1)</script>" not in whole.source
    assert "<img src=x" not in whole.source
    island, rows = whole.island, whole.made.rows("samples.jsonl")
    samples = {(arm, row["id"], row["sample"]): row["completion"] for arm, row in rows}
    for shown in island["answers"]:
        name = island["problems"][shown["problem"]]["id"]
        completion = samples[shown["arm"], name, shown["sample"]]
        assert shown["text"] == completion[:CUT]
        assert shown["cut"] == max(0, len(completion) - CUT)
    for hostile in HOSTILE:
        assert any(hostile in one["text"] for one in island["answers"]), "a test that tests nothing"


def test_every_arm_tier_and_status_can_be_filtered_for_and_is_counted_truly(whole):
    island = whole.island
    problems, answers = island["problems"], island["answers"]
    options = {a.get("value") for a in whole.all("option")}
    assert {"filter-arm", "filter-tier", "filter-status"} <= set(whole.ids)
    judged, solved = set(), Counter()
    for arm, row in whole.made.rows("verdicts.jsonl"):
        judged.add((arm, row["id"].split("-")[1], row["status"]))
        solved[arm, row["id"]] += row["status"] == "optimal"
    assert {(a["arm"], problems[a["problem"]]["tier"], a["status"]) for a in answers} == judged
    assert {a["arm"] for a in answers} <= options
    for shown in answers:
        name = problems[shown["problem"]]["id"]
        asked = problems[shown["problem"]]["solved"]
        assert asked[shown["arm"]] == [solved[shown["arm"], name], SAMPLES]
    assert f"{len(answers)} of {12 * SAMPLES * len(ARMS)} answers, to 12 problems" in whole.text


def test_answers_are_linked_to_filtered_by_rule_and_readable_without_scripts(whole):
    answers = whole.island["answers"]
    assert {a["anchor"] for a in answers} <= set(whole.ids)
    rules = {text.partition(": ")[0] for a in answers for text in a["violations"]}
    assert rules <= {a.get("value") for a in whole.all("option")}


def test_problems_that_only_one_of_base_and_arm_solves_are_shown_for_both():
    tier_of = dict.fromkeys((f"p{i}" for i in range(60)), "dense")
    apart = {"base": "p7", "grpo": "p9"}
    rows = {
        arm: [
            {"id": name, "sample": i, "status": "optimal" if i == 3 and name == own else "feasible"}
            for name in tier_of
            for i in range(4)
        ]
        for arm, own in apart.items()
    }
    shown = {(a["arm"], a["id"], a["status"]) for a in choose_answers(rows, tier_of, 1).answers}
    for arm, own in apart.items():
        [other] = set(apart) - {arm}
        assert {(arm, own, "optimal"), (other, own, "feasible")} <= shown


#: A log in which the entropy collapses.
COLLAPSING = [
    {"step": s, "loss": 0.1, "reward": 0.5, "entropy": 2 * 0.9**s, "grad_norm": 0.1}
    for s in range(60)
]


def test_a_finding_is_marked_in_the_curves_of_its_arm_and_told_below(made):
    rows = [
        {**row, "truth/optimal": 0.5, "completions/duplicates": min(0.9, row["step"] / 40)}
        for row in COLLAPSING
    ]
    write_jsonl(made.run.log("grpo.1"), rows)
    assert "grpo.1, step " in Reader(made.page()).text
    panels = training_panels({"grpo.1": rows, "sft": rows}, looks_of(ARMS), {}, [("sft", 9, "1")])
    assert {tuple(map(tuple, panel.marks)) for panel in panels if "Loss" not in panel.title} == {
        ((9, "1"),)
    }


@pytest.mark.parametrize(("low", "is_note"), [(0.0, True), (0.1, True), (-0.01, False)])
def test_a_collapse_of_entropy_is_a_note_where_pass_at_k_did_not_fall(made, low, is_note):
    counted = json.loads(made.run.report.read_text())
    for pair in counted["tiers"][counted["main"]]["differences"]:
        largest = list(pair["at_k"])[-1]
        pair["at_k"][largest] = {"value": 0.2, "low": low, "high": 0.3, "n": 9}
    made.rewrite(made.run.report, counted)
    write_jsonl(made.run.log("grpo.1"), COLLAPSING)
    text = made.page()
    assert ('<li class="note"><b>grpo.1, step ' in text) == is_note
    assert (f"pass@{largest} did not fall by it: +20.0 [" in text) == is_note
    assert "entropy collapses" in text


def shown_by_browser(page, profile):
    """The page as a browser has it once its script has run."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium here")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command = [browser, *options, f"--user-data-dir={profile}", page.as_uri()]
    return subprocess.run(command, capture_output=True, timeout=60).stdout.decode()


@pytest.mark.slow
def test_in_a_browser_the_first_answer_is_drawn_and_nothing_else_runs(made):
    first = Reader(made.page()).island["answers"][0]
    path = made.folder / made.run.eval / report.REPORT_PAGE
    dom = shown_by_browser(path, made.folder / "browser")
    title = re.search(r'<h3 data-part="title"><span>([^<]*)</span>', dom)
    assert title, dom[-500:]
    assert title[1] == f"{label(first['arm'])}, answer {first['sample'] + 1}"
    assert dom.count('class="event') >= len(first["chosen"])
    assert "<img src=x" not in dom


@pytest.mark.slow
def test_in_a_browser_both_cards_go_where_the_filters_leave_nothing(made):
    choose = """<script>for (const name of ["beside", "arm"]) {
      const menu = document.getElementById(`filter-${name}`);
      menu.value = "sft";
      menu.dispatchEvent(new Event("change"));
    }</script></body>"""
    text = re.sub("<meta http-equiv[^>]*>", "", made.page()).replace("</body>", choose)
    path = made.folder / "chosen.html"
    path.write_text(text, encoding="utf-8")
    dom = shown_by_browser(path, made.folder / "browser")
    cards = re.findall('<article class="sample"[^>]*>', dom)
    assert [" hidden" in card for card in cards] == [True, True]
    assert ">0 of 0<" in dom


# --- the conclusion ------------------------------------------------------------------------------


def test_conclusions_stand_first_with_what_decided_them(whole):
    content = whole.made.elicitation
    table, expected = "", []
    for arm, judged in content["judged"].items():
        conclusions = judged["tiers"] | {"overall": judged["overall"]}
        for tier, concluded in conclusions.items():
            table += f" {label(arm)} {tier} {concluded['conclusion']} {concluded['reason']}"
        conclusions = conclusions.values()
        for concluded in conclusions:
            expected += [f"Decided by {concluded['reason']}.", *concluded["notes"]]
            expected += [cell(estimate, "+") for estimate in concluded["estimates"].values()]
        for concluded in judged["tiers"].values():
            expected += [
                f"base solves {cells['both']} {cells['only_base']} base does not "
                f"{cells['only_tuned']} {cells['neither']}"
                for cells in concluded["two_by_two"].values()
            ]
    before, _, after = whole.text.partition(" Why ")
    assert content["sentence"] in before
    assert f"because{table}" in after
    assert before.count("Guessable:") == 1
    assert [text for text in expected if text not in whole.text] == []


def test_the_page_has_every_table_of_both_results(whole):
    counted = json.loads((whole.made.folder / whole.made.run.report).read_text())
    sheets = [*elicitation_sheets(whole.made.elicitation), *report_sheets(counted)]
    rows = [" ".join(" ".join(filter(None, row)).split()) for sheet in sheets for row in sheet.rows]
    assert [row for row in rows if row not in whole.text] == []
    assert whole.text.count("Entropy, KL divergence and likelihood") == 1, "of dense alone"


def test_sentences_of_both_results_are_said_once_and_stay_text(made):
    notes = [f"Note: {arm} <b> was trained otherwise." for arm in ("GRPO", "SFT", "grpo-only")]
    counted, judged = json.loads(made.run.report.read_text()), made.elicitation
    judged["sentence"] = "Elicited: <i>nothing</i> new & GRPO gains +12.3 [+10.0, +15.0] points."
    made.rewrite(made.run.report, {**counted, "notes": notes[:2]})
    made.rewrite(made.run.elicitation, {**judged, "notes": notes[1:]})
    text = made.page()
    assert "gains +12.3\u00a0[+10.0,\u00a0+15.0] points" in text, "intervals do not break"
    found = Reader(text)
    assert [found.text.count(said) for said in (*notes, judged["sentence"])] == [1, 1, 1, 1]
    assert "i" not in {tag for tag, _ in found.elements}


def test_every_conclusion_is_explained(whole):
    explained = whole.text.partition("What the conclusions mean")[2]
    assert [conclusion for conclusion in Conclusion if f"{conclusion}" not in explained] == []


# --- of what is there now ------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["unfinished", "other answers"])
def test_a_conclusion_on_other_answers_than_the_report_s_is_left_out(made, loss, capsys):
    sentence = made.elicitation["sentence"]
    assert sentence in Reader(made.page()).text
    if loss == "unfinished":
        made.run.elicitation.with_name(MANIFEST).unlink()
    else:
        path = made.run.verdicts("grpo.1")
        write_jsonl(path, [{**row, "note": "judged anew"} for row in rows_in(path)])
    assert sentence not in Reader(made.page()).text
    assert ("left out" in capsys.readouterr().out) == (loss == "other answers")


def test_how_the_answers_were_drawn_is_said_whatever_the_recipe_says_now(made):
    assert "T = 1, top-p = 1" in Reader(made.page()).text
    manifest = made.run.samples("sft").with_name(MANIFEST)
    asking = json.loads(manifest.read_text())["asking"]
    change_json(manifest, asking=asking | {"temperature": 0.6})
    said = "base: T = 1, top-p = 1; SFT: T = 0.6, top-p = 1; grpo.1: T = 1"
    assert said in Reader(made.page()).text


@pytest.mark.parametrize("which", ["report", "elicitation"])
def test_a_result_that_was_changed_is_named(made, which):
    getattr(made.run, which).write_text("{}")
    with pytest.raises(UserError, match=rf"{which}\.json was changed .* `make eval`"):
        made.page()


def test_loss_is_shown_only_where_no_reward_is():
    logs = {arm: list(log_of(arm)) for arm in ("sft", "grpo.1")}
    panels = {panel.title: panel for panel in training_panels(logs, looks_of(ARMS), {}, [])}
    assert [c.label for c in panels["Loss"].curves] == ["SFT"]
    assert [c.label for c in panels["Gradient norm"].curves] == ["SFT", "grpo.1"]
    assert (20, None) in panels["KL to the reference"].curves[0].points
