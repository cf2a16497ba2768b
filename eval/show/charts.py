"""Charts of one style, drawn by matplotlib: as PNG files, and as SVG that stands inside a page.

Marker and line differ from arm to arm, so that no colour is needed to tell arms apart. In the SVG
colours are variables of ``page.css``, which suit light and dark, and text stays text.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from xml.etree import ElementTree

from markupsafe import Markup

from data.common.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

#: Okabe and Ito's colours, which colour-blind readers tell apart, and a marker for each.
_COLOURS = ("#0072b2", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
#: Arms beyond the last marker have the markers again, on broken lines.
_DASHES = ("-", "--", ":")
_FLOOR_DASHES = ((0, (5, 2)), (0, (1, 2)), (0, (8, 3, 1, 3)))
#: Variables of page.css that take the place of colours in a page; the last ones are the style's.
_VARIABLES = {
    **{colour: f"var(--a{i})" for i, colour in enumerate(_COLOURS)},
    "#333333": "var(--ink)",
    "#767676": "var(--soft)",
    "#e4e4e4": "var(--rule)",
    "#ffffff": "var(--paper)",
}
_STYLE = Path(__file__).parent / "templates" / "chart.mplstyle"
#: Every point has a marker up to here, and a few of them beyond.
_MARKED, _FEW = 12, 5


@dataclass(frozen=True)
class Look:
    """How a curve is drawn, in matplotlib's words.

    Attributes:
        family: class of its part of the SVG, by which a page hides all of one family.
    """

    family: str
    colour: str
    marker: str
    dash: str | tuple[int, tuple[int, ...]]


def looks_of(arms: Sequence[str]) -> dict[str, Look]:
    """How each arm is drawn: the seeds of one entry, ``grpo.1`` and ``grpo.2``, are one family and
    share a colour; marker and line of the first 21 arms differ."""
    entries = list(dict.fromkeys(arm.partition(".")[0] for arm in arms))
    looks = {}
    for place, arm in enumerate(arms):
        number = entries.index(arm.partition(".")[0])
        turn, marker = divmod(place, len(_MARKERS))
        dash = _DASHES[min(turn, len(_DASHES) - 1)]
        colour = _COLOURS[number % len(_COLOURS)]
        looks[arm] = Look(f"of-{number}", colour, _MARKERS[marker], dash)
    return looks


def floor_look(place: int) -> Look:
    """How what a blind policy reaches is drawn: grey, dashed, without markers."""
    return Look("floor", "#767676", "", _FLOOR_DASHES[place % len(_FLOOR_DASHES)])


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

    @property
    def marked(self) -> list[int]:
        """The places of the points that have a marker."""
        count = len(self.points)
        if not self.look.marker or count <= _MARKED:
            return list(range(count)) if self.look.marker else []
        return sorted({round(i * (count - 1) / (_FEW - 1)) for i in range(_FEW)})


#: What the marks of each part of a drawing say when pointed at, by the part's id in the SVG; the id
#: is a class, a dot and a number.
Tips = dict[str, list[str]]


@dataclass(frozen=True)
class Panel:
    """Curves on common axes, from 0 (or the least y, where that is below) to ``top``.

    Attributes:
        name: what the chart shows, in words, for those who do not see it.
        x: what the horizontal axis counts.
        percent: whether y is a share, shown in %.
        ks: ticks of a horizontal axis to base 2; without any it is linear.
        faint: whether bands must be so, since there are many.
    """

    title: str
    name: str
    x: str
    curves: Sequence[Curve]
    percent: bool = False
    ks: Sequence[int] = ()
    top: float | None = None
    faint: bool = False

    def draw(self, ax: Axes) -> Tips:
        """Draw onto empty axes."""
        scale = 100 if self.percent else 1
        heights, tips = [0.0], Tips()
        for i, curve in enumerate(self.curves):
            xs = [x for x, _ in curve.points]
            ys = [math.nan if y is None else scale * y for _, y in curve.points]
            low, high = ([scale * ends[end] for ends in curve.band] for end in (0, 1))
            heights += [*(y for y in ys if not math.isnan(y)), *low, *high]
            line, band = f"{curve.look.family}.{i}", f"{curve.look.family}.{i}-band"
            _plot(ax, curve, ys, curve.marked).set_gid(line)
            tips[line] = [self._tip(curve, j) for j in curve.marked if not math.isnan(ys[j])]
            if curve.band:
                alpha = 0.05 if self.faint else 0.16
                ax.fill_between(xs, low, high, color=curve.look.colour, alpha=alpha, lw=0, gid=band)
                tips[band] = []
        ax.locator_params(nbins=5, steps=[1, 2, 2.5, 5, 10])
        if not self.ks:
            ax.locator_params(axis="x", integer=True)
        else:
            ax.set_xscale("log", base=2)
            ax.set_xticks(self.ks, [str(k) for k in self.ks])
            ax.minorticks_off()
        top = scale * self.top if self.top else 1.05 * max(heights) or 1
        ax.set_ylim(min(heights), top)
        ax.set_xlabel(self.x, loc="right")
        return tips

    def _tip(self, curve: Curve, i: int) -> str:
        x, y = curve.points[i]
        values = [y or 0.0, *(curve.band[i] if curve.band else ())]
        first, *ends = (f"{100 * v:.1f}" if self.percent else f"{v:.4g}" for v in values)
        interval = f" [{', '.join(ends)}]" if ends else ""
        return f"{curve.label}, {self.x} {x:g}: {first}{interval}{' %' if self.percent else ''}"


@dataclass(frozen=True)
class Bars:
    """How many problems stand at each place of a scale from 0 to 1, one arm's.

    Attributes:
        name: what the chart shows, in words, for those who do not see it.
        bars: (place, count); the first is 0 itself, the others share 0 to 1 equally.
        top: of the vertical axis, common to all arms.
    """

    title: str
    name: str
    look: Look
    bars: Sequence[tuple[str, int]]
    top: int

    def draw(self, ax: Axes) -> Tips:
        """Draw onto empty axes."""
        for i, (_, count) in enumerate(self.bars):
            ax.bar(i, count, color=self.look.colour, gid=f"bar.{i}")
        ax.locator_params(axis="y", nbins=4, integer=True)
        ax.set_xticks([0, len(self.bars) / 2, len(self.bars) - 0.5], ["0", "0.5", "1"])
        ax.set_ylim(0, 1.05 * self.top)
        return {
            f"bar.{i}": [f"accuracy {place}: {count} problems"]
            for i, (place, count) in enumerate(self.bars)
        }


def _plot(ax: Axes, curve: Curve, ys: Sequence[float], marked: Sequence[int]) -> Line2D:
    xs, look = [x for x, _ in curve.points], curve.look
    [line] = ax.plot(xs, ys, color=look.colour, linestyle=look.dash, marker=look.marker)
    width = 1.8 if look.marker else 1.2
    line.set(markevery=marked, label=curve.label, linewidth=width, clip_on=False)
    return line


# --- files and markup ----------------------------------------------------------------------------


def write_png(charts: Sequence[Panel], path: Path, caption: str = "") -> None:
    """Draw charts three across, with one legend and one caption for all."""
    across = min(3, len(charts))
    down = -(-len(charts) // across)
    content = io.BytesIO()
    with _figure(1.2 + 3.8 * across, 2.8 * down + 0.7, layout="constrained") as figure:
        axes = figure.subplots(down, across, squeeze=False).flat
        named: dict[str, Artist] = {}
        for ax, chart in zip(axes, charts, strict=False):
            chart.draw(ax)
            ax.set_title(chart.title)
            lines, labels = ax.get_legend_handles_labels()
            named |= dict(zip(labels, lines, strict=True))
        for ax in axes[len(charts) :]:
            ax.set_visible(False)
        if named:
            figure.legend(named.values(), named, loc="outside upper left", ncols=8, fontsize=9)
        figure.supxlabel(caption, fontsize=9)
        figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
    write_bytes(path, content.getvalue())


def inline_svg(chart: Panel | Bars, identity: str) -> Markup:
    """Draw a chart for inside a page, where no other has its ``identity``."""
    width, height = (4.2, 2.7) if isinstance(chart, Panel) else (2.8, 1.7)
    with _figure(width, height, identity) as figure:
        left, bottom, rest = 0.45 / width, 0.4 / height, 0.1 / height
        tips = chart.draw(figure.add_axes((left, bottom, 0.98 - left, 1 - bottom - rest)))
        return _markup(figure, tips, {"class": "chart", "role": "img", "aria-label": chart.name})


def inline_swatch(look: Look, identity: str) -> Markup:
    """Draw a piece of line with its marker, for a legend inside a page."""
    with _figure(0.4, 0.18, identity) as figure:
        ax = figure.add_axes((0.05, 0, 0.9, 1), frame_on=False, xticks=[], yticks=[])
        _plot(ax, Curve("", look, [(0, 0), (1, 0), (2, 0)]), [0] * 3, [1])
        return _markup(figure, {}, {"class": "swatch", "aria-hidden": "true"})


@contextmanager
def _figure(
    width: float, height: float, identity: str = "", layout: Literal["constrained"] | None = None
) -> Iterator[Figure]:
    """An empty figure, in inches. It is none of pyplot's, so it needs no display."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": identity}, _STYLE):
        yield Figure(figsize=(width, height), layout=layout)


def _markup(figure: Figure, tips: Tips, attributes: Mapping[str, str]) -> Markup:
    """The figure as SVG for HTML. Of its ids only those remain that it refers to, which the salt of
    its figure makes its own; the font is left to the page."""
    content = io.StringIO()
    figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    text = content.getvalue().replace("xlink:href", "href")
    text = re.sub(r' xmlns="[^"]*"|font-family:[^;"]*;? ?', "", text)
    text = re.sub(r"#[0-9a-f]{6}\b", lambda colour: _VARIABLES[colour[0]], text)
    root = ElementTree.fromstring(text)
    del root[:2]  # metadata, and a style that would be the whole page's
    parts = {part.attrib["id"]: part for part in root.iter() if "id" in part.attrib}
    for name in parts.keys() - set(re.findall(r"#(\w+)", text)):
        del parts[name].attrib["id"]
    for name, said in tips.items():
        parts[name].set("class", name.partition(".")[0])
        marks = list(parts[name].iter("use")) or list(parts[name].iter("path"))
        for mark, tip in zip(marks, said, strict=False):
            ElementTree.SubElement(mark, "title").text = tip
    root.attrib = {"viewBox": root.attrib["viewBox"], **attributes}
    return Markup(ElementTree.tostring(root, encoding="unicode"))
