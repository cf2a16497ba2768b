"""Stage ``make sft``: supervised fine-tuning on gold answers, with TRL's SFTTrainer."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from data.common.errors import run_main
from data.prompts import messages
from data.recipe import Recipe, recipe_arguments, recipe_from
from pipeline.train import backend
from pipeline.train.settings import check_settings, sft_config
from pipeline.train.trainer import run_trainer, start_of, training_rows


def trainer_for(
    recipe: Recipe, rows: list[dict[str, Any]], model: Any, tokenizer: Any, output: Path
) -> Any:
    """TRL's SFTTrainer on the prompts and gold answers of ``rows``."""
    from datasets import Dataset
    from trl import SFTTrainer

    dataset = Dataset.from_list(
        [
            {
                "prompt": messages(row["prompt"]),
                "completion": [{"role": "assistant", "content": row["gold"]}],
            }
            for row in rows
        ]
    )
    trainer = SFTTrainer(
        model=model,
        args=sft_config(recipe, output),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    return backend.hold_adapters_whole(recipe, trainer)


def run(recipe: Recipe, force: bool, arm: str = "sft") -> None:
    """Train an arm on prompts and gold answers; the merged result is ``<arm>/model``."""
    start_of(recipe, arm, "sft")
    recipe = recipe.for_arm(arm)
    backend.start(recipe)
    rows = training_rows(recipe, arm)
    check_settings(recipe)
    run_trainer(recipe, arm, "sft", {}, force, partial(trainer_for, recipe, rows))


def main() -> None:
    parser = recipe_arguments(__doc__.split("\n")[0])
    parser.add_argument("--arm", default="sft", help="the arm of the recipe to train")
    arguments = parser.parse_args()
    run(recipe_from(arguments), arguments.force, arguments.arm)


if __name__ == "__main__":
    run_main(main)
