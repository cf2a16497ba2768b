"""The card of a run's problems, in the Hugging Face layout; its text is ``card.md`` beside this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from data.policies import FLOOR_KS, GUESSABLE, PolicyFloors
from data.tiers import Tier


def dataset_card(floors: Mapping[str, PolicyFloors], largest_k: int, **facts: object) -> str:
    """The text of ``README.md``.

    Args:
        floors: by tier.
        largest_k: of the evaluation.
        facts: what else the text names: the run's name, its seed, the tiers' uses, a hash of all
            rows, by which `datasets` tells its copies of two runs apart, …
    """
    guessed = {tier: policies["random_maximal"][largest_k] for tier, policies in floors.items()}
    settings = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    return settings.from_string(text).render(
        facts,
        floors=floors,
        largest_k=largest_k,
        ks=FLOOR_KS,
        percent="{:.1%}".format,
        made_of=_made_of,
        guessable=[f"{tier} ({p:.1%})" for tier, p in guessed.items() if p > GUESSABLE],
    )


def _made_of(tier: Tier) -> str:
    return ", ".join(f"{key} {value}" for key, value in asdict(tier).items() if value)
