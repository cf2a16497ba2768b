"""The report of `make eval`: its numbers, its tables and the arms that it compares."""

import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console
from running import TINY, refusal_of

from data.recipe import load_recipe
from data.sections import Arm
from eval.judge import comparisons, write_report
from eval.show.report_sheets import headline, report_sheets
from eval.show.tables import Sheet, markdown_of, print_sheets
from eval.stats.passk import ks_for
from eval.stats.summary import summarise_arms

ARMS = ["base", "sft", "grpo"]
COMPARISONS = [("grpo", "sft"), ("grpo", "base"), ("sft", "base")]
N = 8
#: Successes of each problem's 8 samples; "dense" holds the first four, "trap" the last two.
SOLVED = {
    "base": {"d0": 1, "d1": 0, "d2": 2, "d3": 1, "t0": 0, "t1": 1},
    "sft": {"d0": 2, "d1": 1, "d2": 2, "d3": 1, "t0": 0, "t1": 0},
    "grpo": {"d0": 8, "d1": 0, "d2": 4, "d3": 0, "t0": 0, "t1": 0},
}
TIER = {"d0": "dense", "d1": "dense", "d2": "dense", "d3": "dense", "t0": "trap", "t1": "trap"}
FLOORS = {
    tier: {
        "random_maximal": {1: 0.05, 2: 0.1, 4: 0.19, 8: 0.34, 256: 1.0},
        "greedy_by_start": dict.fromkeys((1, 2, 4, 8), share),
    }
    for tier, share in (("dense", 0.25), ("trap", 0.0))
}


def row(problem, sample, status, answer, violations=(), ratio=0.0, reason="stop"):
    verdict = {"id": problem, "sample": sample, "status": status, "violations": list(violations)}
    verdict |= {"objective": 0, "optimum": 60, "ratio": ratio, "finish_reason": reason}
    return verdict | {"answer": answer}


def rows_of(arm, samples=N):
    """Successes first, then one feasible answer of ratio 0.5, one cut off, the rest overlapping."""
    for problem, solved in SOLVED[arm].items():
        for i in range(samples):
            if i < solved:
                yield row(problem, i, "optimal", "best", ratio=1.0)
            elif i == solved:
                yield row(problem, i, "feasible", "other", ratio=0.5)
            elif i == solved + 1:
                yield row(problem, i, "unparsable", i, ["unterminated"], reason="length")
            else:
                broken = ["overlap: a / b", "overlap: b / c", "altered_time: a"]
                yield row(problem, i, "infeasible", f"wrong {i}", broken)


def summary(rows=None, **changes):
    arguments = {
        "tiers": ["trap", "dense"],
        "main": "dense",
        "floors": FLOORS,
        "verdict_rows": {arm: rows_of(arm) for arm in ARMS} if rows is None else rows,
        "problems_by_id": TIER,
        "seed": 1,
        "comparisons": COMPARISONS,
        "resamples": 500,
    }
    return summarise_arms(**(arguments | changes))


def printed(report, width=100):
    console = Console(file=io.StringIO(), width=width)
    print_sheets(report_sheets(report), console)
    return console.file.getvalue()


def test_pass_at_k_holds_the_exact_values_with_n_and_an_interval():
    dense = summary()["tiers"]["dense"]
    assert (dense["problems"], dense["samples"], dense["ks"]) == (4, 8, list(ks_for(8)))
    base = dense["arms"]["base"]["pass_at_k"]
    # At 2: 1 - C(8 - c, 2) / C(8, 2) for c = 1, 0, 2, 1.
    expected = {"1": (1 + 0 + 2 + 1) / 32, "2": (7 + 0 + 13 + 7) / 28 / 4, "8": 3 / 4}
    assert {k: base[k]["value"] for k in expected} == pytest.approx(expected)
    for estimate in base.values():
        assert estimate["low"] <= estimate["value"] <= estimate["high"]
        assert estimate["n"] == 4


def test_statuses_violations_and_finish_reasons_are_counted_by_tier_and_arm():
    report = summary()
    base = report["tiers"]["dense"]["arms"]["base"]
    assert base["answers"] == 32
    assert base["statuses"] == {"optimal": 4, "feasible": 4, "infeasible": 20, "unparsable": 4}
    # An answer with two overlaps shows overlap once.
    assert base["violations"] == {"overlap": 20, "altered_time": 20, "unterminated": 4}
    assert base["finish_reasons"] == {"stop": 28, "length": 4}
    assert report["tiers"]["trap"]["arms"]["sft"]["statuses"]["optimal"] == 0


def test_means_are_over_problems():
    base = summary()["tiers"]["dense"]["arms"]["base"]
    assert base["valid"]["value"] == pytest.approx(8 / 32)
    assert base["ratio"]["value"] == pytest.approx((4 + 4 * 0.5) / 32)
    # c = 1: best, other, 6 wrong; c = 0: other, 7 wrong; c = 2: best twice, other, 5 wrong
    assert base["distinct"]["value"] == pytest.approx((8 + 8 + 7 + 8) / 32)
    assert base["valid"]["n"] == 4


def test_differences_are_paired_and_say_where_the_base_overtakes():
    found = summary()["tiers"]["dense"]["differences"]
    pairs = {(pair["tuned"], pair["reference"]): pair for pair in found}
    assert list(pairs) == COMPARISONS
    against_base = pairs["grpo", "base"]
    assert against_base["at_k"]["1"]["value"] == pytest.approx((12 - 4) / 32)
    assert against_base["at_k"]["8"]["value"] == pytest.approx((2 - 3) / 4)
    # base: (k/8 + 0 + (1 - (8-k)(7-k)/56) + k/8) / 4; GRPO: (1 + 0 + (1 - C(4,k)/C(8,k)) + 0) / 4
    assert against_base["overtaken_at"] == 5
    assert pairs["sft", "base"]["overtaken_at"] is None


@pytest.mark.parametrize(
    ("arms", "pairs"),
    [
        ({"sft": Arm("sft"), "grpo": Arm("grpo", "sft")}, COMPARISONS),
        ({"grpo": Arm("grpo")}, [("grpo", "base")]),
        (
            {"warm": Arm("sft", seeds=(1, 2)), "paid": Arm("grpo", "warm.2")},
            [("paid", "warm.2"), ("paid", "base"), ("warm.2", "base"), ("warm.1", "base")],
        ),
    ],
)
def test_each_arm_is_compared_with_what_it_started_from_and_with_the_base(arms, pairs):
    assert comparisons(replace(load_recipe(TINY), arms=arms).all_arms) == pairs


@pytest.mark.parametrize(
    ("floor", "is_flagged"),
    [({8: 0.5}, False), ({8: 0.501}, True), ({8: 1.0}, True), ({1: 0.9}, False), ({}, False)],
)
def test_a_tier_that_guessing_solves_more_than_half_of_is_called_guessable(floor, is_flagged):
    report = summary(floors={**FLOORS, "dense": {"random_maximal": floor} if floor else {}})
    for text in (printed(report), markdown_of(report_sheets(report))):
        assert text.count("Guessable") == is_flagged  # of dense alone


def test_the_printed_table_holds_the_numbers_and_what_they_rest_on():
    report = summary(resamples=10_000)
    text = printed(report)
    for tier in report["tiers"].values():
        for arm in tier["arms"].values():
            for estimate in arm["pass_at_k"].values():
                cell = [f"{100 * estimate[key]:.1f}" for key in ("value", "low", "high")]
                assert f"{cell[0]} [{cell[1]}, {cell[2]}]" in text
            for status, count in arm["statuses"].items():
                assert re.search(rf"status: {status} .*\b{count} \(", text)
        assert text.count(f"{tier['problems']} problems x 8 samples") == 3
    assert "10,000" in text
    assert text.index("dense (main tier)") < text.index("trap: pass@k")
    assert "k = 5." in text  # where the base overtakes GRPO
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 100
    assert "greedy by start 25.0 %" in text


def test_a_pipe_in_a_name_divides_no_cell_of_the_markdown():
    text = markdown_of([Sheet("a|b", ["arm", "a|b"], [["base on a|b", "1"]], [])])
    assert "| arm | a\\|b |" in text
    assert "| base on a\\|b | 1 |" in text


def test_the_report_is_the_same_each_time_and_for_a_tier_whatever_the_others():
    assert summary() == summary()
    alone = summary(tiers=["dense"])
    assert alone["tiers"]["dense"] == summary()["tiers"]["dense"]
    assert summary(seed=2)["tiers"] != summary()["tiers"]


@pytest.mark.parametrize("dropped", ["d2", "half", "all"])
def test_an_arm_that_lacks_answers_is_refused_by_name(dropped):
    rows = [] if dropped == "all" else list(rows_of("sft", 4 if dropped == "half" else 8))
    rows = {**{arm: rows_of(arm) for arm in ARMS}, "sft": [r for r in rows if r["id"] != dropped]}
    refusal_of(lambda: summary(rows), f"arm 'sft' has {4 if dropped == 'half' else 0} samples of")


def test_the_report_is_json_markdown_and_a_plot(tmp_path, capsys):
    report = summary(resamples=200)
    write_report(tmp_path, report, ["Note: this."])
    written = json.loads((tmp_path / "report.json").read_text())
    assert written == {**report, "notes": ["Note: this."]}
    markdown = (tmp_path / "report.md").read_text()
    said = f"{headline(report)}\n\nNote: this.\n\n"
    assert markdown == said + markdown_of(report_sheets(report))
    assert (tmp_path / "passk.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.endswith("Note: this.\n")


def test_an_arm_is_compared_with_the_base_asked_in_its_way_and_with_its_twin():
    cool = {"temperature": 0.6, "top_p": 0.95}
    arms = {
        "base-cool": Arm("none", eval=cool),
        "best": Arm("none", tune={"shots": [0, 2]}),
        "sft": Arm("sft"),
        "sft-cool": Arm("none", "sft", eval=dict(reversed(cool.items()))),
        "sft-best": Arm("none", "sft", tune={"shots": [0, 2]}),
        "sft-other": Arm("none", "sft", eval={"temperature": 0.5}),
    }
    pairs = comparisons(arms)
    assert {arm: [other for tuned, other in pairs if tuned == arm] for arm in arms} == {
        "base-cool": ["base"],
        "best": ["base"],
        "sft": ["base"],
        "sft-cool": ["sft", "base", "base-cool"],
        "sft-best": ["sft", "base", "best"],
        "sft-other": ["sft", "base"],
    }
    pairs = comparisons(load_recipe(TINY.with_name("backends.yaml")).all_arms)
    assert {("grpo-unsloth", "grpo"), ("sft-unsloth", "sft")} <= set(pairs), "by another backend"
