"""Stage ``make sft``: supervised fine-tuning on gold answers, with TRL's SFTTrainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.errors import run_main
from data.make import read_split, split_path
from data.prompts import messages
from data.recipe import Recipe, recipe_arguments, recipe_from
from pipeline.settings import check, lora_config, sft_config
from pipeline.train import run_trainer


def run(recipe: Recipe, force: bool) -> None:
    """Train the base model on prompts and gold answers; the merged result is ``sft/model``."""
    rows = read_split(recipe, "train")
    check(recipe)

    def make(model: Any, tokenizer: Any, output: Path) -> Any:
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
        return SFTTrainer(
            model=model,
            args=sft_config(recipe, output),
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=lora_config(recipe),
        )

    run_trainer(
        recipe, "sft", recipe.model, {"sft": recipe.sft}, [split_path(recipe, "train")], force, make
    )


def main() -> None:
    arguments = recipe_arguments(__doc__.split("\n")[0]).parse_args()
    run(recipe_from(arguments), arguments.force)


if __name__ == "__main__":
    run_main(main)
