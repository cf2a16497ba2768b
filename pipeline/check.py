"""Checks a recipe before anything runs: settings that TRL, PEFT and torch would refuse; with
``--lengths`` texts that would not fit the model (the first and the last part of ``make data``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from data.common.console import plain_console
from data.common.errors import run_main
from data.common.files import write_json
from data.recipe import Recipe, recipe_arguments, recipe_from
from pipeline.model.lengths import (
    ALL,
    TEXTS,
    check_lengths,
    count_lengths,
    lengths_stage,
    read_lengths,
)
from pipeline.model.load import quiet
from pipeline.train.settings import check_settings


def check_texts(recipe: Recipe, force: bool) -> None:
    """Count the tokens of every text, unless ``lengths.json`` is up to date, and check them.

    Raises:
        UserError: see ``count_lengths`` and ``check_lengths``.
    """
    stage, path = lengths_stage(recipe), recipe.run.lengths
    if stage.begin_unless_done(force):
        quiet()
        facts = count_lengths(recipe)
        write_json(path, facts)
        stage.finish([f"../{path.name}"])
        print_lengths(recipe.model, facts)
    else:
        facts = read_lengths(recipe)
    check_lengths(recipe, facts)


def print_lengths(model: str, facts: Mapping[str, Any]) -> None:
    """Print the longest texts of each tier."""
    table = Table(title=f"tokens by the tokenizer of {model}: longest (99th percentile)")
    for column in ("tier", "problems", *TEXTS):
        table.add_column(column, justify="left" if column == "tier" else "right")
    for tier, parts in facts["tiers"].items():
        summary = parts[ALL]
        cells = (f"{summary[text]['longest']:,} ({summary[text]['p99']:,})" for text in TEXTS)
        table.add_row(tier, f"{summary['problems']:,}", *cells)
    plain_console().print(table)


def main() -> None:
    parser = recipe_arguments(__doc__.split("\n\n")[0].replace("\n", " "))
    parser.add_argument("--lengths", action="store_true", help="count and check the texts' tokens")
    arguments = parser.parse_args()
    recipe = recipe_from(arguments)
    if arguments.lengths:
        check_texts(recipe, arguments.force)
    else:
        check_settings(recipe)
        print(f"{recipe.path}: sound")


if __name__ == "__main__":
    run_main(main)
