"""Checks a recipe before anything runs: what TRL, PEFT and torch would refuse, of settings and of
the model (first in ``make data``), or with ``--lengths`` whether its texts fit the model (last).
"""

from __future__ import annotations

from data.common.console import plain_console, plain_table, say
from data.common.errors import run_main
from data.common.files import write_json
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.tiers import TIERS
from pipeline.model.lengths import TEXTS, TextLengths, check_lengths, count_lengths, uses
from pipeline.model.load import quiet
from pipeline.train.loading import check_model
from pipeline.train.settings import check_settings


def check_texts(recipe: Recipe) -> None:
    """Count the tokens of every text, write ``lengths.json``, and check them.

    Raises:
        UserError: see ``count_lengths`` and ``check_lengths``.
    """
    lengths = count_lengths(recipe)
    write_json(recipe.run.lengths, lengths)
    print_lengths(lengths)
    check_lengths(uses(recipe), lengths, recipe.run, recipe.max_seq_length)


def print_lengths(lengths: TextLengths) -> None:
    """Print the longest texts of each tier."""
    table = plain_table("tier", *TEXTS)
    for tier, splits in lengths["tiers"].items():
        most = (max(texts[text][0] for texts in splits.values()) for text in TEXTS)
        table.add_row(tier, *(f"{tokens:,}" for tokens in most))
    console = plain_console()
    say(console, f"tokens of the longest texts, by the tokenizer of {lengths['model']}", "bold")
    console.print(table, markup=False)


def main() -> None:
    parser = recipe_arguments("Checks a recipe before anything runs.")
    parser.add_argument(
        "--lengths", action="store_true", help="check the tokens of the run's texts instead"
    )
    arguments = parser.parse_args()
    recipe = recipe_from(arguments, begins=True)
    quiet()
    if arguments.lengths:
        check_texts(recipe)
    else:
        check_settings(recipe)
        check_model(recipe)
        new = [name for name, use in recipe.tier_uses.items() if name not in TIERS]
        print(f"{recipe.path}: sound{'; tiers of its own: ' * bool(new)}{', '.join(new)}")


if __name__ == "__main__":
    run_main(main)
