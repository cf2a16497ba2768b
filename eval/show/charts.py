"""Charts of one style, drawn by matplotlib: as PNG files, and as SVG that stands inside a page.

Marker and line differ from arm to arm, so that no colour is needed to tell arms apart. In the SVG
colours are variables of ``page.css``, which suit light and dark, and text stays text.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

from markupsafe import Markup

from data.common.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.typing import RcKeyType

#: Okabe and Ito's colours, which colour-blind readers tell apart, and a marker for each.
_COLOURS = ("#0072b2", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
#: Arms beyond the last marker have the markers again, on broken lines.
_DASHES = ("-", "--", ":")
_FLOOR_DASHES = ((0, (5, 2)), (0, (1, 2)), (0, (8, 3, 1, 3)))
_INK, _SOFT, _RULE, _PAPER = "#333333", "#767676", "#e4e4e4", "#ffffff"
#: Variables of page.css that take the place of these colours in a page.
_VARIABLES = {colour: f"var(--a{i})" for i, colour in enumerate(_COLOURS)} | {
    _INK: "var(--ink)",
    _SOFT: "var(--soft)",
    _RULE: "var(--rule)",
    _PAPER: "var(--paper)",
}
_STYLE: dict[RcKeyType, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": _SOFT,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": _SOFT,
    "axes.labelsize": 9.5,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "grid.color": _RULE,
    "legend.frameon": False,
    "lines.markeredgecolor": _PAPER,
    "lines.markersize": 5.5,
    "svg.fonttype": "none",
    "text.color": _INK,
    "text.parse_math": False,  # a tier's name may hold dollars
    "xtick.color": _SOFT,
    "xtick.labelsize": 9.5,
    "xtick.major.size": 0,
    "ytick.color": _SOFT,
    "ytick.labelsize": 9.5,
    "ytick.major.size": 0,
}
#: Every point has a marker up to here, and a few of them beyond.
_MARKED, _FEW = 12, 5
_LINK = "{http://www.w3.org/1999/xlink}href"


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
    return Look("floor", _SOFT, "", _FLOOR_DASHES[place % len(_FLOOR_DASHES)])


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


@dataclass(frozen=True)
class Group:
    """A part of a drawing in the SVG: its name there, its class, and what each of its marks says
    when pointed at."""

    name: str
    family: str
    tips: Sequence[str] = ()


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

    def draw(self, ax: Axes) -> list[Group]:
        """Draw onto empty axes."""
        scale = 100 if self.percent else 1
        heights = [0.0]
        groups = []
        for i, curve in enumerate(self.curves):
            xs = [x for x, _ in curve.points]
            ys = [math.nan if y is None else scale * y for _, y in curve.points]
            low, high = ([scale * ends[end] for ends in curve.band] for end in (0, 1))
            heights += [*(y for y in ys if not math.isnan(y)), *low, *high]
            _plot(ax, curve, ys, curve.marked).set_gid(f"curve-{i}")
            tips = [self._tip(curve, j) for j in curve.marked if not math.isnan(ys[j])]
            groups.append(Group(f"curve-{i}", curve.look.family, tips))
            if curve.band:
                band = ax.fill_between(xs, low, high, color=curve.look.colour, lw=0)
                band.set(alpha=0.05 if self.faint else 0.16, gid=f"band-{i}")
                groups.append(Group(f"band-{i}", curve.look.family))
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
        return groups

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

    def draw(self, ax: Axes) -> list[Group]:
        """Draw onto empty axes."""
        groups = []
        for i, (place, count) in enumerate(self.bars):
            ax.bar(i, count, color=self.look.colour, gid=f"bar-{i}")
            tip = f"accuracy {place}: {count} problems"
            groups.append(Group(f"bar-{i}", self.look.family, [tip]))
        ax.locator_params(axis="y", nbins=4, integer=True)
        ax.set_xticks([0, len(self.bars) / 2, len(self.bars) - 0.5], ["0", "0.5", "1"])
        ax.set_ylim(0, 1.05 * self.top)
        return groups


def _plot(ax: Axes, curve: Curve, ys: Sequence[float], marked: Sequence[int]) -> Line2D:
    xs, look = [x for x, _ in curve.points], curve.look
    [line] = ax.plot(xs, ys, color=look.colour, linestyle=look.dash, marker=look.marker)
    width = 1.8 if look.marker else 1.2
    line.set(markevery=marked, label=curve.label, linewidth=width, clip_on=False)
    return line


# --- files and markup ----------------------------------------------------------------------------


def write_png(charts: Sequence[Panel | Bars], path: Path, caption: str = "") -> None:
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
        groups = chart.draw(figure.add_axes((left, bottom, 0.98 - left, 1 - bottom - rest)))
        return _markup(figure, groups, {"class": "chart", "role": "img", "aria-label": chart.name})


def inline_swatch(look: Look, identity: str) -> Markup:
    """Draw a piece of line with its marker, for a legend inside a page."""
    with _figure(0.4, 0.18, identity) as figure:
        ax = figure.add_axes((0.05, 0, 0.9, 1), frame_on=False, xticks=[], yticks=[])
        _plot(ax, Curve("", look, [(0, 0), (1, 0), (2, 0)]), [0] * 3, [1])
        return _markup(figure, [], {"class": "swatch", "aria-hidden": "true"})


@contextmanager
def _figure(
    width: float, height: float, identity: str = "", layout: Literal["constrained"] | None = None
) -> Iterator[Figure]:
    """An empty figure, in inches. It is none of pyplot's, so it needs no display."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE | {"svg.hashsalt": identity}):
        yield Figure(figsize=(width, height), layout=layout)


def _markup(figure: Figure, groups: Iterable[Group], attributes: Mapping[str, str]) -> Markup:
    """The figure as SVG for HTML. Of its ids only those remain that it refers to, which the salt of
    its figure makes its own; the font is left to the page."""
    content = io.StringIO()
    figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    text = content.getvalue()
    root = ElementTree.fromstring(text)
    referred = set(re.findall(r"#(\w+)", text))
    del root[:2]  # metadata, and a style that would be the whole page's
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        if _LINK in element.attrib:
            element.set("href", element.attrib.pop(_LINK))
        if "style" in element.attrib:
            element.set("style", _restyled(element.attrib["style"]))
    named = {element.attrib["id"]: element for element in root.iter() if "id" in element.attrib}
    for group in groups:
        part = named[group.name]
        part.set("class", group.family)
        marks = list(part.iter("use")) or list(part.iter("path"))
        for mark, tip in zip(marks, group.tips, strict=False):
            ElementTree.SubElement(mark, "title").text = tip
    for name, element in named.items():
        if name not in referred:
            del element.attrib["id"]
    root.attrib = {"viewBox": root.attrib["viewBox"], **attributes}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _restyled(style: str) -> str:
    style = re.sub(r"font-family:[^;]*;? ?", "", style)
    return re.sub(r"#\w{6}", lambda colour: _VARIABLES[colour[0]], style)
