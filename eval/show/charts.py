"""Small charts of one style: curves and bars, placed for inline SVG, and as a PNG.

An arm has a ``Look``. In the page its colour is a class, which the style sheet turns into one that
suits light and dark; marker and line are its own, so that no colour is needed to tell arms apart.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.common.files import write_bytes
from eval.show.plot import STYLES

#: Of a drawing, in the units of its view box; about pixels on a phone.
WIDTH, HEIGHT = 360, 232
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 14, 12, 40
#: Curves with more points than this are averaged over equal stretches.
MOST_POINTS = 120
#: A marker for every point up to here, and for a few of them beyond.
_MARKED, _FEW = 12, 5
#: Arms beyond the last marker have the markers again, on broken lines.
_DASHES = ("-", "--", ":")
#: SVG paths of the markers about 0, 0, in the order of ``STYLES``.
MARKERS = {
    "o": "M-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0-7.2 0z",
    "s": "M-3.2-3.2h6.4v6.4h-6.4z",
    "^": "M0-4.2L4.2 3.4H-4.2z",
    "D": "M0-4.6L4.6 0L0 4.6L-4.6 0z",
    "v": "M0 4.2L4.2-3.4H-4.2z",
    "P": "M-1.5-4.2h3v2.7h2.7v3h-2.7v2.7h-3v-2.7h-2.7v-3h2.7z",
    "X": "M-4.2-2.2L-2.2-4.2L0-2L2.2-4.2L4.2-2.2L2 0L4.2 2.2L2.2 4.2L0 2L-2.2 4.2L-4.2 2.2L-2 0z",
}


@dataclass(frozen=True)
class Look:
    """How an arm is drawn.

    Attributes:
        family: the place of its entry in the recipe, which gives the colour; the training seeds of
            one entry are one family.
        place: its own place among the arms, which gives marker and line; those of 21 differ.
    """

    family: int
    place: int

    @property
    def colour(self) -> str:
        return STYLES[self.family % len(STYLES)][0]

    @property
    def marker(self) -> str:
        return STYLES[self.place % len(STYLES)][1]

    @property
    def path(self) -> str:
        return MARKERS[self.marker]

    @property
    def turn(self) -> int:
        """Which of the lines: unbroken, dashed, dotted."""
        return min(self.place // len(STYLES), len(_DASHES) - 1)

    @property
    def dash(self) -> str:
        return _DASHES[self.turn]

    @property
    def line(self) -> dict[str, str]:
        """What matplotlib draws its line with."""
        return {"color": self.colour, "ls": self.dash, "marker": self.marker}

    @property
    def tint(self) -> str:
        """The class that page.css gives the colour of."""
        return f"a{self.family % len(STYLES)}"


@dataclass(frozen=True)
class Curve:
    """One curve.

    Attributes:
        label: whose it is.
        look: of a floor, which has no colour, only the place counts.
        points: (x, y) in order of x; a y of None leaves a gap.
        band: (low, high) of each point, or none.
        floor: drawn thin and dashed, without markers.
    """

    label: str
    look: Look
    points: Sequence[tuple[float, float | None]]
    band: Sequence[tuple[float, float]] = ()
    floor: bool = False


@dataclass(frozen=True)
class Panel:
    """Curves on common axes, from 0 (or the least y, where that is below) to ``top``.

    Attributes:
        name: what the chart shows, in words, for those who do not see it.
        x: what the horizontal axis counts.
        ticks: on the horizontal axis; chosen where there are none. With ``log``, to base 2.
    """

    title: str
    name: str
    x: str
    curves: Sequence[Curve]
    percent: bool = False
    log: bool = False
    ticks: Sequence[float] = ()
    top: float | None = None

    def limits(self) -> tuple[float, float, float, float]:
        """(least x, greatest x, least y, greatest y) of the axes."""
        xs = [x for curve in self.curves for x, _ in curve.points]
        ys = [y for curve in self.curves for _, y in curve.points if y is not None]
        ys += [end for curve in self.curves for ends in curve.band for end in ends]
        return min(xs), max(xs), min(0.0, *ys), self.top or max(*ys, 0.0) or 1.0

    def place(self) -> dict[str, Any]:
        """Everything that the template draws, in the units of the view box."""
        low_x, high_x, low, high = self.limits()
        y_ticks = nice_ticks(low, high)
        low, high = min(low, y_ticks[0]), max(high, y_ticks[-1])
        x_ticks = list(self.ticks) or [t for t in nice_ticks(low_x, high_x) if low_x <= t <= high_x]
        scale = math.log2 if self.log else float
        left, right = scale(low_x), scale(high_x)

        def across(x: float) -> float:
            share = (scale(x) - left) / (right - left) if right > left else 0.5
            return round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 1)

        def up(y: float) -> float:
            return round(HEIGHT - _BOTTOM - (y - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM), 1)

        return {
            "x_ticks": [(across(t), f"{t:g}") for t in x_ticks],
            "y_ticks": [(up(t), _number(t, self.percent)) for t in y_ticks],
            "ends": (_LEFT, WIDTH - _RIGHT, HEIGHT - _BOTTOM),
            "curves": [_placed(curve, self, across, up) for curve in self.curves],
        }


@dataclass(frozen=True)
class Bars:
    """How many problems stand at each place of a scale, one arm's."""

    title: str
    name: str
    look: Look
    bars: Sequence[tuple[str, float]]
    top: float

    def place(self) -> dict[str, Any]:
        """Everything that the template draws, in the units of the view box."""
        ticks = nice_ticks(0, self.top)
        height = HEIGHT - _TOP - _BOTTOM
        places = len(self.bars)
        step = (WIDTH - _LEFT - _RIGHT) / places
        heights = [round(count / ticks[-1] * height, 1) for _, count in self.bars]
        return {
            "y_ticks": [
                (round(HEIGHT - _BOTTOM - t / ticks[-1] * height, 1), f"{t:g}") for t in ticks
            ],
            # The first bar is an accuracy of 0, the others share 0 to 1 equally.
            "x_ticks": [
                (round(_LEFT + place * step, 1), text)
                for place, text in ((0.5, "0"), ((places + 1) / 2, "0.5"), (places, "1"))
            ],
            "ends": (_LEFT, WIDTH - _RIGHT, HEIGHT - _BOTTOM),
            "bars": [
                {
                    "x": round(_LEFT + i * step + 2, 1),
                    "y": round(HEIGHT - _BOTTOM - tall, 1),
                    "width": round(step - 4, 1),
                    "height": tall,
                    "tip": f"accuracy {label}: {count:g} problems",
                }
                for i, ((label, count), tall) in enumerate(zip(self.bars, heights, strict=True))
            ],
        }


def nice_ticks(low: float, high: float) -> list[float]:
    """A handful of round numbers that hold ``low`` and ``high`` between them."""
    from matplotlib.ticker import MaxNLocator

    found = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [round(float(tick), 10) for tick in found]


def _number(value: float, percent: bool) -> str:
    return f"{round(100 * value, 6):g}" if percent else f"{value:g}"


def _placed(curve: Curve, panel: Panel, across: Any, up: Any) -> dict[str, Any]:
    line, pen = [], "M"
    for x, y in curve.points:
        line += [] if y is None else [f"{pen}{across(x)} {up(y)}"]
        pen = "M" if y is None else "L"
    xs = [across(x) for x, _ in curve.points]
    edge = [
        *(f"{x} {up(high)}" for x, (_, high) in zip(xs, curve.band, strict=False)),
        *(f"{x} {up(low)}" for x, (low, _) in reversed([*zip(xs, curve.band, strict=False)])),
    ]
    marked = [] if curve.floor else _marked(len(curve.points))
    return {
        "look": curve.look,
        "floor": curve.floor,
        "line": "".join(line),
        "band": f"M{'L'.join(edge)}z" if edge else "",
        "marks": [
            {"x": across(x), "y": up(y), "tip": _tip(curve, panel, i)}
            for i in marked
            for x, y in [curve.points[i]]
            if y is not None
        ],
    }


def _marked(points: int) -> Iterable[int]:
    if points <= _MARKED:
        return range(points)
    return sorted({round(i * (points - 1) / (_FEW - 1)) for i in range(_FEW)})


def _tip(curve: Curve, panel: Panel, i: int) -> str:
    x, y = curve.points[i]
    say = (lambda v: f"{100 * v:.1f}") if panel.percent else (lambda v: f"{v:.4g}")
    ends = f" [{', '.join(map(say, curve.band[i]))}]" if curve.band else ""
    return f"{curve.label}, {panel.x} {x:g}: {say(y)}{ends}{' %' if panel.percent else ''}"


def thinned(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """At most ``MOST_POINTS``: means over stretches of equally many, gaps left out of them."""
    each = -(-len(points) // MOST_POINTS)
    if each <= 1:
        return list(points)
    found: list[tuple[float, float | None]] = []
    for start in range(0, len(points), each):
        stretch = points[start : start + each]
        ys = [y for _, y in stretch if y is not None]
        found.append((stretch[-1][0], sum(ys) / len(ys) if ys else None))
    return found


def draw_panels(panels: Sequence[Panel | Bars], path: Path, looks: Mapping[str, Look]) -> None:
    """The same charts as a PNG, three across; ``looks`` are the arms of a legend."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(1.2 + 3.8 * across, 2.8 * down + 0.6), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False)
    for ax, panel in zip(axes.flat, panels, strict=False):
        ax.set_title(panel.title, loc="left", fontsize=10, fontweight="bold")
        ax.grid(axis="y", color="#E4E4E4", lw=0.8)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(length=0, labelsize=8)
        (_draw_curves if isinstance(panel, Panel) else _draw_bars)(ax, panel)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    handles = []
    for name, look in looks.items():
        handles.append(Line2D([], [], **look.line, ms=5, label=name))
    if handles:
        figure.legend(handles=handles, loc="outside upper left", ncols=8, fontsize=9, frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130, metadata={"Software": None})
    write_bytes(path, content.getvalue())


def _draw_curves(ax: Any, panel: Panel) -> None:
    times = 100 if panel.percent else 1
    for curve in panel.curves:
        xs = [x for x, _ in curve.points]
        ys = [math.nan if y is None else times * y for _, y in curve.points]
        marked = list(_marked(len(xs)))
        ax.plot(xs, ys, **curve.look.line, ms=5, lw=1.6, markevery=marked)
    _, _, low, high = panel.limits()
    ax.set_ylim(times * low, times * high * 1.05)
    ax.set_xlabel(panel.x, fontsize=8)


def _draw_bars(ax: Any, panel: Bars) -> None:
    labels, counts = zip(*panel.bars, strict=True)
    ax.bar(range(len(counts)), counts, color=panel.look.colour, width=0.8)
    ax.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=6)
    ax.set_ylim(0, panel.top * 1.05)
