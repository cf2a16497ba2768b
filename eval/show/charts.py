"""The charts of a run as PNG: pass@k by tier, training signals by step.

Marker and line differ from arm to arm, so that no colour is needed to tell arms apart.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.policies import GREEDY
from eval.show.report_sheets import tier_title
from eval.show.tables import label

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

#: Okabe and Ito's colours, which colour-blind readers tell apart, and a marker for each.
_COLOURS = ("#0072b2", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
#: Arms beyond the last marker have the markers again, on broken lines.
_DASHES = ("-", "--", ":")
_FLOOR_DASHES = ((0, (5, 2)), (0, (1, 2)), (0, (8, 3, 1, 3)))
#: Signals of a training log: name in the log, title, whether it is a share.
SHOWN_SIGNALS = (
    ("rewards/optimal/mean", "Optimal answers, %", True),
    ("val/optimal", "Optimal answers on val, %", True),
    ("rewards/validity/mean", "Valid answers, %", True),
    ("reasoning/traced", "Answers that reason in claims, %", True),
    ("reasoning/sound", "Answers whose every claim is true, %", True),
    ("completions/mean_length", "Tokens an answer", False),
    ("reward", "Reward", False),
    ("entropy", "Entropy of a token", False),
    ("kl", "KL to the reference", False),
    ("kl_start", "KL to the start", False),
    ("grad_norm", "Gradient norm", False),
    ("loss", "Loss", False),
)
_STYLE = Path(__file__).parent / "templates" / "chart.mplstyle"

#: Colour, marker and line of a curve, in matplotlib's words.
Look = Mapping[str, Any]
#: The share that each blind policy solves, by k.
Floors = Mapping[str, Mapping[str, float]]


def looks_of(arms: Sequence[str]) -> dict[str, Look]:
    """The look of each arm: the seeds of one entry, ``grpo.1`` and ``grpo.2``, share a colour;
    marker and line of the first 21 arms differ."""
    entries = list(dict.fromkeys(arm.partition(".")[0] for arm in arms))
    looks: dict[str, Look] = {}
    for place, arm in enumerate(arms):
        number = entries.index(arm.partition(".")[0])
        turn, marker = divmod(place, len(_MARKERS))
        looks[arm] = {
            "color": _COLOURS[number % len(_COLOURS)],
            "marker": _MARKERS[marker],
            "linestyle": _DASHES[min(turn, len(_DASHES) - 1)],
            "linewidth": 1.8,
        }
    return looks


@dataclass(frozen=True)
class Curve:
    """One curve.

    Attributes:
        points: (x, y) in order of x; a y of None leaves a gap.
        band: (low, high) of each point, or none.
    """

    label: str
    look: Look
    points: Sequence[tuple[float, float | None]]
    band: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Panel:
    """Curves on common axes.

    Attributes:
        percent: whether y is a share, shown in %.
        ks: ticks of a horizontal axis of k, to base 2; without any it counts ``across``.
        marks: steps to be marked, each with its sign.
    """

    title: str
    curves: Sequence[Curve]
    percent: bool = False
    ks: Sequence[int] = ()
    marks: Sequence[tuple[float, str]] = ()
    across: str = "step"

    def draw(self, ax: Axes) -> None:
        """Draw onto empty axes."""
        scale = 100 if self.percent else 1
        for curve in self.curves:
            xs = [x for x, _ in curve.points]
            ys = [math.nan if y is None else scale * y for _, y in curve.points]
            few = max(1, len(xs) // 6)  # of a long curve, every so many points have a marker
            ax.plot(xs, ys, **curve.look, label=curve.label, markevery=few, clip_on=False)
            low, high = ([scale * ends[end] for ends in curve.band] for end in (0, 1))
            if curve.band:
                ax.fill_between(xs, low, high, color=curve.look["color"], alpha=0.1, lw=0)
        for step, sign in self.marks:
            ax.axvline(step, color="#b3261e", linewidth=1, linestyle=":")
            ax.annotate(
                sign, (step, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom",
                fontsize=8, color="#b3261e", fontweight="bold",
            )  # fmt: skip
        ax.set_title(self.title, pad=14 if self.marks else None)
        ax.set_xlabel("k" if self.ks else self.across, loc="right")
        ax.locator_params(nbins=5, steps=[1, 2, 2.5, 5, 10])
        if self.ks:
            ax.set_xscale("log", base=2)
            ax.set_xticks(self.ks, [str(k) for k in self.ks])
            ax.minorticks_off()
        else:
            ax.locator_params(axis="x", integer=True)


def drawn_as_png(panels: Sequence[Panel], caption: str = "", sharey: bool = False) -> bytes:
    """Panels three across, with one legend and one caption for all."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    across = min(3, len(panels))
    down = -(-len(panels) // across)
    content = io.BytesIO()
    with rc_context(fname=_STYLE):
        # It is none of pyplot's, so it needs no display.
        figure = Figure(figsize=(1.2 + 3.8 * across, 2.8 * down + 0.7), layout="constrained")
        axes = figure.subplots(down, across, squeeze=False, sharey=sharey).flat
        named: dict[str, Artist] = {}
        for ax, panel in zip(axes, panels, strict=False):
            panel.draw(ax)
            lines, labels = ax.get_legend_handles_labels()
            named |= dict(zip(labels, lines, strict=True))
        for ax in axes[: len(panels)]:  # now that all is drawn, if their scale is common
            ax.set_ylim(bottom=min(0.0, ax.dataLim.ymin))
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        columns = 3 * across - 1  # what the width holds
        figure.legend(named.values(), named, loc="outside upper left", ncols=columns, fontsize=9)
        figure.supxlabel(caption, fontsize=9)
        figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
    return content.getvalue()


# --- pass@k, training ----------------------------------------------------------------------------


def passk_chart(report: Mapping[str, Any]) -> bytes:
    """pass@k of every arm with its interval, and the floors, a panel a tier, as PNG."""
    looks = looks_of(report["arms"])
    panels = [
        Panel(
            tier_title(report, tier),
            [*_arm_curves(counted, looks), *_floor_curves(counted)],
            percent=True,
            ks=counted["ks"],
        )
        for tier, counted in report["tiers"].items()
    ]
    caption = f"k, answers to each problem; problems solved, in %. Bands: {report['interval']}"
    return drawn_as_png(panels, caption, sharey=True)


def _arm_curves(counted: Mapping[str, Any], looks: Mapping[str, Look]) -> list[Curve]:
    curves = []
    for arm, of_arm in counted["arms"].items():
        estimates = [(k, of_arm["pass_at_k"][str(k)]) for k in counted["ks"]]
        points = [(k, estimate["value"]) for k, estimate in estimates]
        band = [(estimate["low"], estimate["high"]) for _, estimate in estimates]
        curves.append(Curve(label(arm), looks[arm], points, band))
    return curves


def _floor_curves(counted: Mapping[str, Any]) -> list[Curve]:
    curves = []
    for name, by_k, look in _drawn_floors(counted["floors"]):
        points = [(k, share) for k in counted["ks"] if (share := by_k.get(str(k))) is not None]
        if points:
            curves.append(Curve(name, look, points))
    return curves


def _drawn_floors(floors: Floors) -> Iterator[tuple[str, Mapping[str, float], Look]]:
    """(name to show, share solved by k, look) of the random policies and of the greedy one that is
    best here."""
    drawn = {name.replace("_", " "): by_k for name, by_k in floors.items() if name not in GREEDY}
    if greedy := [floors[policy] for policy in floors if policy in GREEDY]:
        drawn["best greedy rule"] = max(greedy, key=lambda by_k: by_k["1"])
    for (name, by_k), dash in zip(drawn.items(), cycle(_FLOOR_DASHES), strict=False):
        yield name, by_k, {"color": "#767676", "linestyle": dash, "linewidth": 1.2}


def breadth_chart(summary: Mapping[str, Any]) -> bytes:
    """Of ``compare.json`` each arm's change at the most tries against its gain at one, both to what
    it started from, in points with their intervals as a cross; a panel a tier, as PNG. An arm from
    which others start is their zero, and not drawn beside them."""
    panels = []
    for tier, compared in summary["tiers"].items():
        # The first difference of an arm is that to its start.
        to_start = {pair["arm"]: pair for pair in reversed(compared["differences"])}
        starts = {pair["reference"] for pair in to_start.values()}
        drawn = [arm for arm in compared["arms"] if arm in to_start and arm not in starts]
        curves = []
        for arm, look in looks_of(drawn).items():
            gain, change = to_start[arm]["optimal"], to_start[arm]["solved"]
            x, y = 100 * gain["value"], change["value"]
            ends = ([(100 * gain[end], y), (x, change[end])] for end in ("low", "high"))
            across, up = zip(*ends, strict=True)
            line = {**look, "marker": ""}
            curves += [Curve("_", line, across), Curve("_", line, up)]
            curves.append(Curve(label(arm), look, [(x, y)]))
        panels.append(Panel(tier, curves, percent=True, across="gain at k = 1, points"))
    most = summary["samples"]
    return drawn_as_png(panels, f"Up: change at k = {most}, points, to where each arm started")


def training_panels(
    logs: Mapping[str, Sequence[Mapping[str, Any]]],
    looks: Mapping[str, Look],
    floors: Floors,
    marks: Sequence[tuple[str, float, str]],
) -> list[Panel]:
    """A panel for each of SHOWN_SIGNALS that the log of some arm has.

    Args:
        floors: what each blind policy solves, by k, drawn where optimal answers are.
        marks: arm, step and sign of what is marked where the arm has a curve.
    """
    panels = []
    for signal, title, percent in SHOWN_SIGNALS:
        curves, drawn = [], set()
        for arm, rows in logs.items():
            if signal == "loss" and any("reward" in row for row in rows):
                continue  # GRPO's loss is near 0 whatever happens
            points = [
                (row["step"], _finite(row[signal]))
                for row in rows
                if signal in row and _finite(row.get("step")) is not None
            ]
            if any(y is not None for _, y in points):
                curves.append(Curve(label(arm), looks[arm], points))
                drawn.add(arm)
        if curves and signal in ("rewards/optimal/mean", "val/optimal"):
            ends = [min(xs := [x for c in curves for x, _ in c.points]), max(xs)]
            for name, by_k, look in _drawn_floors(floors):
                curves.append(Curve(name, look, [(x, by_k["1"]) for x in ends]))
        if curves:
            panels.append(
                Panel(
                    title,
                    curves,
                    percent,
                    marks=[(step, sign) for arm, step, sign in marks if arm in drawn],
                )
            )
    return panels


def _finite(value: object) -> float | None:
    """A number that can be drawn; None, which is a gap, for anything else."""
    return value if isinstance(value, int | float) and abs(value) < 1e100 else None
