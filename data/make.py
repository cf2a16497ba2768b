"""Stage ``make data``: problems with proven optima, prompts, gold answers, and a dataset card.

Writes ``runs/<run>/data/{train,val,test}.jsonl``, ``README.md`` (the card) and ``floors.json``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from data.common.console import plain_console, say
from data.common.errors import run_main
from data.common.files import Stage, sha256, write_json, write_jsonl, write_text
from data.draw import draw_splits
from data.policies import FLOOR_KS, GUESSABLE, PolicyFloors, floor
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import Row, new_row, problems_by_tier, row_to_json, trace_of
from data.sections import SPLITS, DataSection, TierUse
from data.solver import is_computable


def run(recipe: Recipe, force: bool) -> None:
    """Draw, prove and write everything, unless it is there already."""
    console = plain_console()
    home, uses, largest_k = recipe.run, recipe.tier_uses, recipe.eval.samples
    settings = {
        "seed": recipe.seed,
        "reasoning": recipe.data.reasoning,
        "reasoned": recipe.data.reasoned,
        "largest_k": largest_k,
        "tiers": {name: asdict(use) for name, use in uses.items()},
    }
    stage = Stage(home.data, "data", settings, _local_sources(uses.values()))
    home.belong_to(recipe.path, force)
    if not stage.begin_unless_done(force):
        return
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for split, tier, problems in draw_splits(recipe.seed, uses, console):
        for index, problem in enumerate(problems):
            identity = f"{split}-{tier}-{index:05d}"
            trace = trace_of(identity, recipe.data)
            rows[split].append(new_row(identity, split, tier, problem, trace))
    tests, ks = problems_by_tier(rows["test"]), sorted({*FLOOR_KS, largest_k})
    floors = {tier: floor(problems, ks) for tier, problems in tests.items()}
    for split in SPLITS:
        write_jsonl(home.split(split), map(row_to_json, rows[split]))
    written = hashlib.sha256("".join(sha256(home.split(s)) for s in SPLITS).encode()).hexdigest()
    write_json(home.floors, floors)
    card = dataset_card(
        floors, largest_k, name=recipe.run_name, seed=recipe.seed, uses=uses, rows=written,
        trace=_trace(recipe.data, rows), digests=_digests(rows),
    )  # fmt: skip
    write_text(home.data / "README.md", card)
    stage.finish(
        [*(f"{split}.jsonl" for split in SPLITS), home.floors.name, "README.md"],
        seed=recipe.seed,
        counts={
            split: {tier: getattr(use, split) for tier, use in uses.items()} for split in SPLITS
        },
    )
    made = ", ".join(f"{len(rows[split])} {split}" for split in SPLITS)
    say(console, f"{home.data}: {made} problems; its README.md has what blind policies score")


def dataset_card(floors: Mapping[str, PolicyFloors], largest_k: int, **facts: object) -> str:
    """The card of a run's problems, in the Hugging Face layout; its text is ``data/card.md``.

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
        made_of=lambda tier: ", ".join(f"{k} {v}" for k, v in asdict(tier).items() if v),
        guessable=[f"{tier} ({p:.1%})" for tier, p in guessed.items() if p > GUESSABLE],
    )


def _trace(data: DataSection, rows: Mapping[str, Sequence[Row]]) -> str:
    """What the card says of the reasoning in gold answers."""
    if data.reasoning == "none" or not data.reasoned:
        return ""
    every = [row for split in SPLITS for row in rows[split]]
    silent = {row["tier"] for row in every if not is_computable(row["problem"])}
    share = "" if data.reasoned == 1 else f"{data.reasoned:.1%} of them "
    without = f"; none where rules are not computed so: {', '.join(sorted(silent))}"
    named = without if silent and data.reasoning == "computed" else ""
    return f", {share}with a {data.reasoning} reasoning trace{named}"


def _local_sources(uses: Iterable[TierUse]) -> list[Path]:
    """Files that tiers are imported from."""
    names = [use.published(split) for use in uses if use.source for split in ("train", "test")]
    return [path for path in map(Path, names) if path.is_file()]


def _digests(rows: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    """A hash of each split's fingerprints."""
    prints = {split: sorted(row["problem"].fingerprint for row in rows[split]) for split in SPLITS}
    return {s: hashlib.sha256("".join(found).encode()).hexdigest() for s, found in prints.items()}


def main() -> None:
    arguments = recipe_arguments(__doc__.split("\n")[0]).parse_args()
    run(recipe_from(arguments, begins=True), arguments.force)


if __name__ == "__main__":
    run_main(main)
