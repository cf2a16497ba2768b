"""The content of ``report.json`` as a plot of pass@k."""

from __future__ import annotations

import io
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.common.files import write_bytes
from data.policies import GREEDY
from eval.show.tables import label, tier_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Okabe and Ito's colours, told apart by colour-blind readers too, and a marker each.
STYLES = (
    ("#0072B2", "o"),
    ("#009E73", "s"),
    ("#D55E00", "^"),
    ("#CC79A7", "D"),
    ("#56B4E9", "v"),
    ("#E69F00", "P"),
    ("#000000", "X"),
)
_FLOOR_COLOUR = "#767676"
_FLOOR_DASHES = ((0, (5, 2)), (0, (2, 2)), (0, (1, 2)), (0, (8, 3, 1, 3)), (0, (3, 1, 1, 1)))


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Draw pass@k with bands and floors, a panel a tier, to a PNG."""
    # Imported here, as it is slow and needed once. A Figure of its own, outside pyplot, draws with
    # Agg whatever display there is.
    from matplotlib.figure import Figure

    tiers = list(report["tiers"])
    across = min(3, len(tiers))
    down = -(-len(tiers) // across)
    figure = Figure(figsize=(1.2 + 4.6 * across, 4.3 * down + 0.3), layout="constrained")
    axes = figure.subplots(down, across, sharey=True, squeeze=False)
    colours = dict(zip(report["arms"], STYLES * len(report["arms"]), strict=False))
    top = _highest(report)
    for ax, tier in zip(axes.flat, tiers, strict=False):
        _draw_tier(ax, report, tier, colours, top)
    for ax in axes.flat[len(tiers) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel(f"problems solved ({report['success']} answer), %")
    figure.supxlabel(f"k, answers to each problem. Bands: {report['interval']}", fontsize=9)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=160, metadata={"Software": None})
    write_bytes(path, content.getvalue())


def _highest(report: Mapping[str, Any]) -> float:
    """The upper end of the y axis in %, a multiple of 10 that holds every curve and band."""
    found = [
        share
        for tier in report["tiers"].values()
        for share in chain(
            (e["high"] for arm in tier["arms"].values() for e in arm["pass_at_k"].values()),
            (s for policy in tier["floors"].values() for s in policy.values() if s is not None),
        )
    ]
    return min(100.0, 10 * np.ceil(10 * max(found) + 0.2))


def _draw_tier(
    ax: Axes,
    report: Mapping[str, Any],
    tier: str,
    colours: Mapping[str, tuple[str, str]],
    top: float,
) -> None:
    found = report["tiers"][tier]
    ks = found["ks"]
    labels: list[tuple[float, str, str]] = []
    best_greedy = max(
        (p for p in found["floors"] if p in GREEDY),
        key=lambda p: found["floors"][p]["1"],
        default=None,
    )
    floors = [p for p in found["floors"] if p not in GREEDY or p == best_greedy]
    for policy, dashes in zip(floors, _FLOOR_DASHES * len(floors), strict=False):
        points = [(k, 100 * s) for k in ks if (s := found["floors"][policy][str(k)]) is not None]
        if points:
            ax.plot(*zip(*points, strict=True), color=_FLOOR_COLOUR, linestyle=dashes, lw=1.2)
            labels.append((points[-1][1], policy.replace("_", " "), _FLOOR_COLOUR))
    for arm, result in found["arms"].items():
        colour, marker = colours[arm]
        value, low, high = (
            [100 * result["pass_at_k"][str(k)][key] for k in ks] for key in ("value", "low", "high")
        )
        ax.fill_between(ks, low, high, color=colour, alpha=0.16, lw=0)
        ax.plot(ks, value, color=colour, marker=marker, ms=5, lw=2, clip_on=False)
        labels.append((value[-1], label(arm), colour))
    ax.set_xscale("log", base=2)
    ax.set_xticks(ks, [str(k) for k in ks])
    ax.minorticks_off()
    ax.set_ylim(0, top)
    ax.set_title(f"{tier_title(report, tier)}\n", loc="left", fontsize=11, fontweight="bold", pad=2)
    ax.text(
        0,
        1.02,
        f"{found['problems']:,} problems x {found['samples']} samples",
        fontsize=9,
        transform=ax.transAxes,
    )
    ax.grid(axis="y", color="#E4E4E4", lw=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(length=0, labelleft=True)
    _label_ends(ax, labels, top)


def _label_ends(ax: Axes, labels: list[tuple[float, str, str]], top: float) -> None:
    """Name each curve at its right end, pushed apart where ends are close."""
    from scipy.optimize import isotonic_regression

    gap = 0.055 * top
    labels = sorted(labels)
    # Least squares with at least a gap between neighbours is isotonic regression, shifted.
    shifts = gap * np.arange(len(labels))
    free = isotonic_regression([height for height, _, _ in labels] - shifts).x
    heights = np.clip(free, 0, top - shifts[-1]) + shifts
    for height, (_, text, colour) in zip(heights, labels, strict=True):
        ax.annotate(
            text,
            (1, height),
            xycoords=("axes fraction", "data"),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=9,
            fontweight="normal" if colour == _FLOOR_COLOUR else "bold",
            annotation_clip=False,
        )
