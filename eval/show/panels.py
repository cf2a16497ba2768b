"""The charts of a run: pass@k by tier, training signals by step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from data.common.files import write_bytes
from data.policies import GREEDY
from eval.show.charts import Curve, Look, Panel, drawn_as_png, floor_look, looks_of
from eval.show.report_sheets import tier_title
from eval.show.tables import label

#: Signals of a training log: name in the log, title, whether it is a share.
SHOWN_SIGNALS = (
    ("reward", "Reward", False),
    ("rewards/optimal/mean", "Optimal answers, %", True),
    ("rewards/validity/mean", "Valid answers, %", True),
    ("val/optimal", "Optimal answers on val, %", True),
    ("kl", "KL to the reference", False),
    ("kl_start", "KL to the start", False),
    ("entropy", "Entropy of a token", False),
    ("grad_norm", "Gradient norm", False),
    ("completions/mean_length", "Tokens an answer", False),
    ("loss", "Loss", False),
)


def draw_passk(report: Mapping[str, Any], path: Path) -> None:
    """Draw pass@k of ``report.json`` to a PNG."""
    write_bytes(path, passk_chart(report))


def passk_chart(report: Mapping[str, Any]) -> bytes:
    """pass@k of every arm with its interval, and the floors, a panel a tier, as PNG. All have one
    scale, a multiple of 10 % that holds every curve."""
    looks = looks_of(report["arms"])
    curves = {
        tier: [*_arm_curves(counted, looks), *_floor_curves(counted)]
        for tier, counted in report["tiers"].items()
    }
    drawn = list(chain.from_iterable(curves.values()))
    highest = max(y or 0 for curve in drawn for _, y in (*curve.points, *curve.band))
    panels = [
        Panel(
            tier_title(report, tier),
            "k",
            of_tier,
            percent=True,
            ks=report["tiers"][tier]["ks"],
            top=min(1.0, math.ceil(10 * highest + 0.2) / 10),
            faint=len(looks) > 6,
        )
        for tier, of_tier in curves.items()
    ]
    caption = f"k, answers to each problem; problems solved, in %. Bands: {report['interval']}"
    return drawn_as_png(panels, caption)


def _arm_curves(counted: Mapping[str, Any], looks: Mapping[str, Look]) -> list[Curve]:
    curves = []
    for arm, of_arm in counted["arms"].items():
        estimates = [(k, of_arm["pass_at_k"][str(k)]) for k in counted["ks"]]
        points = [(k, estimate["value"]) for k, estimate in estimates]
        band = [(estimate["low"], estimate["high"]) for _, estimate in estimates]
        curves.append(Curve(label(arm), looks[arm], points, band))
    return curves


def _floor_curves(counted: Mapping[str, Any]) -> list[Curve]:
    """The random policies, and the greedy one that is best here."""
    floors = counted["floors"]
    greedy = [policy for policy in floors if policy in GREEDY]
    best = max(greedy, key=lambda policy: floors[policy]["1"], default=None)
    shown = [policy for policy in floors if policy not in GREEDY or policy == best]
    curves = []
    for place, policy in enumerate(shown):
        name = "best greedy rule" if policy == best else policy.replace("_", " ")
        shares = [(k, floors[policy].get(str(k))) for k in counted["ks"]]
        if points := [(k, share) for k, share in shares if share is not None]:
            curves.append(Curve(name, floor_look(place), points))
    return curves


def training_panels(
    logs: Mapping[str, Sequence[Mapping[str, Any]]], looks: Mapping[str, Look]
) -> list[Panel]:
    """A panel for each of SHOWN_SIGNALS that the log of some arm has."""
    panels = []
    for signal, title, percent in SHOWN_SIGNALS:
        curves = []
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
        if curves:
            panels.append(Panel(title, "step", curves, percent=percent))
    return panels


def _finite(value: object) -> float | None:
    """A number that can be drawn; None, which is a gap, for anything else."""
    return value if isinstance(value, int | float) and abs(value) < 1e100 else None
