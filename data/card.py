"""The card of a run's problems, in the Hugging Face layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from data.policies import FLOOR_KS, GUESSABLE, PolicyFloors
from data.sections import SPLITS, TierUse

_CARD = """\
---
license: apache-2.0
task_categories: [text-generation]
tags: [scheduling, reinforcement-learning, verifiable-rewards]
configs:
- config_name: default
  data_files:
  - {{split: train, path: train.jsonl}}
  - {{split: val, path: val.jsonl}}
  - {{split: test, path: test.jsonl}}
---
# Scheduling problems of `{name}`

Choose events of one day, none overlapping, for the greatest weighted duration (priority
events count twice). Every optimum is proven by OR-Tools CP-SAT. Master seed {seed}.

| tier | train | val | test | what |
|---|--:|--:|--:|---|
{tiers}

## Fields

`id, split, tier, problem` (events as name, start, end; priorities; rules; optimum), \
`optimum` in weighted minutes, `gold` (an optimal answer{trace}), `prompt`.

## What blind guessing scores

Share of test problems solved optimally within k tries, computed exactly on these very
problems. *Random feasible* is any feasible schedule with equal chance; *random maximal*
takes events in random order while they fit.

| tier | policy | {ks} |
|---|---|{columns}
{floors}

*Guessable*, more than half solved by random maximal within {k} tries (the evaluation's \
largest k), so that pass@{k} says little about a model there: {guessable}.

## Fingerprints

A fingerprint is a hash of a problem without its names. No two problems share one, within
a split or across splits. SHA-256 of each split's sorted fingerprints:

{digests}
"""


def dataset_card(
    name: str,
    seed: int,
    reasoning: bool,
    uses: Mapping[str, TierUse],
    digests: Mapping[str, str],
    floors: Mapping[str, PolicyFloors],
    largest_k: int,
) -> str:
    """The text of ``README.md``.

    Args:
        name: of the run.
        reasoning: whether gold answers have a trace.
        digests: of each split's fingerprints.
        floors: by tier.
        largest_k: of the evaluation.
    """
    guessable = [
        f"{tier} ({policies['random_maximal'][largest_k]:.1%})"
        for tier, policies in floors.items()
        if policies["random_maximal"][largest_k] > GUESSABLE
    ]
    return _CARD.format(
        name=name,
        seed=seed,
        tiers="\n".join(_tier_row(tier, use) for tier, use in uses.items()),
        trace=" with its reasoning trace" if reasoning else "",
        ks=" | ".join(f"k = {k}" for k in FLOOR_KS),
        columns="--:|" * len(FLOOR_KS),
        floors="\n".join(
            f"| {tier} | {policy.replace('_', ' ')} | "
            + " | ".join(f"{values[k]:.1%}" for k in FLOOR_KS)
            + " |"
            for tier, policies in floors.items()
            for policy, values in policies.items()
        ),
        k=largest_k,
        guessable=", ".join(guessable) or "none",
        digests="\n".join(f"- {split}: `{digest}`" for split, digest in digests.items()),
    )


def _tier_row(tier: str, use: TierUse) -> str:
    what = use.source or ", ".join(f"{k} {v}" for k, v in asdict(use.tier).items() if v)
    counts = " | ".join(str(getattr(use, split)) for split in SPLITS)
    return f"| {tier} | {counts} | {what} |"
