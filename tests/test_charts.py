"""Charts: looks that are told apart, and curves whatever a log holds."""

import io
import math

import pytest
from matplotlib.image import imread

from eval.show import charts
from eval.show.charts import Curve, Panel, drawn_as_png, looks_of, training_panels


def test_seeds_of_an_entry_share_a_colour_and_no_two_arms_look_alike():
    arms = ["base", *(f"arm{i}.{seed}" for i in range(6) for seed in (1, 2, 3))]
    looks = looks_of(arms)
    assert len({(look["marker"], look["linestyle"]) for look in looks.values()}) == len(arms) == 19
    for entry in ("arm0", "arm5"):
        assert len({looks[f"{entry}.{seed}"]["color"] for seed in (1, 2, 3)}) == 1
    assert len({look["color"] for look in looks.values()}) == 7


@pytest.mark.parametrize("points", [[(1, 0.0)], [(1, -2.0), (2, None)], [(5, 1e-9), (6, 0.0)]])
@pytest.mark.parametrize("ks", [[], [1]])
def test_odd_curves_can_be_drawn(points, ks):
    look = looks_of(["base"])["base"]
    panels = [Panel("$t", [Curve("a", look, points)], ks=ks) for _ in range(4)]
    assert drawn_as_png(panels).startswith(b"\x89PNG")


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_legend_of_many_arms_ends_within_the_picture(count):
    names = ["base", "base-best", "rejection-sft", *(f"grpo-only.{i}" for i in range(12))]
    curves = [Curve(name, look, [(1, 0.5)]) for name, look in looks_of(names).items()]
    picture = imread(io.BytesIO(drawn_as_png([Panel("t", curves)] * count)))
    assert (picture[:, -3:, :3] == 1).all()


def test_gain_at_one_try_is_drawn_against_change_at_the_most_each_to_its_start(monkeypatch):
    def pair(arm, reference, one, most):
        rates = {"optimal": one, "solved": most}
        ends = {key: {"value": v, "low": v - 0.1, "high": v + 0.1} for key, v in rates.items()}
        return {"arm": arm, "reference": reference, **ends}

    pairs = [pair("a", "sft", 0.3, -0.1), pair("b", "sft", 0.2, 0.2), pair("a", "b", 0.1, -0.3)]
    pairs.insert(0, pair("sft", "base", 0.0, 0.0))  # the zero of the others
    dense = {"arms": dict.fromkeys(("base", "sft", "a", "b")), "differences": pairs}
    summary = {"samples": 64, "tiers": {"dense": dense}}
    assert charts.breadth_chart(summary).startswith(b"\x89PNG")
    drawn = []
    monkeypatch.setattr(charts, "drawn_as_png", lambda panels, caption: drawn.extend(panels) or b"")
    charts.breadth_chart(summary)
    dots = {curve.label: curve.points for curve in drawn[0].curves if len(curve.points) == 1}
    assert dots == {"a": [(30.0, -0.1)], "b": [(20.0, 0.2)]}


def test_what_is_no_number_is_a_gap_in_a_curve():
    rows = [{"step": i, "loss": loss} for i, loss in enumerate((0.5, math.inf, "x", math.nan, 0.4))]
    [panel] = training_panels({"sft": [*rows, {"loss": 1.0}]}, looks_of(["sft"]), {}, [])
    assert panel.curves[0].points == [(0, 0.5), (1, None), (2, None), (3, None), (4, 0.4)]
