"""The card of a run's problems, in the Hugging Face layout; its text is ``card.md`` beside this."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from data.policies import FLOOR_KS, GUESSABLE, PolicyFloors
from data.sections import SPLITS, TierUse


def dataset_card(
    name: str,
    seed: int,
    trace: str,
    uses: Mapping[str, TierUse],
    digests: Mapping[str, str],
    rows: str,
    floors: Mapping[str, PolicyFloors],
    largest_k: int,
) -> str:
    """The text of ``README.md``.

    Args:
        name: of the run.
        trace: what is said of the reasoning in gold answers.
        digests: of each split's fingerprints.
        rows: a hash of all rows, by which `datasets` tells its copies of two runs apart.
        floors: by tier.
        largest_k: of the evaluation.
    """
    guessed = {tier: policies["random_maximal"][largest_k] for tier, policies in floors.items()}
    scores = [
        (tier, policy.replace("_", " "), *(f"{values[k]:.1%}" for k in FLOOR_KS))
        for tier, policies in floors.items()
        for policy, values in policies.items()
    ]
    return (
        Path(__file__)
        .with_name("card.md")
        .read_text(encoding="utf-8")
        .format(
            name=name,
            rows=rows,
            seed=seed,
            tiers=_table_rows(
                (tier, *(str(getattr(use, split)) for split in SPLITS), _made_of(use))
                for tier, use in uses.items()
            ),
            trace=trace,
            ks=" | ".join(f"k = {k}" for k in FLOOR_KS),
            columns="--:|" * len(FLOOR_KS),
            floors=_table_rows(scores),
            largest_k=largest_k,
            guessable=", ".join(f"{tier} ({p:.1%})" for tier, p in guessed.items() if p > GUESSABLE)
            or "none",
            digests="\n".join(f"- {split}: `{digest}`" for split, digest in digests.items()),
        )
    )


def _made_of(use: TierUse) -> str:
    return use.source or ", ".join(f"{k} {v}" for k, v in asdict(use.tier).items() if v)


def _table_rows(cells: Iterable[Iterable[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
