"""Stage ``make sft``: supervised fine-tuning on gold answers, with TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data.common.errors import run_main
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import Row
from pipeline.model.decode import continued, reasoning_prefix, render
from pipeline.model.score import encode
from pipeline.train.loading import hold_adapters_whole
from pipeline.train.settings import sft_config
from pipeline.train.trainer import run_trainer
from pipeline.train.training import Training, training_of


def examples(tokenizer: Any, rows: Sequence[Row]) -> list[dict[str, list[int]]]:
    """Prompts and gold answers in tokens, 1 in the mask where they are the answer's.

    The prompt is what sampling shows, the answer what a model would write and end: a chat template
    may render a finished conversation otherwise, without its reasoning or with an empty one.
    """
    prefix = reasoning_prefix(tokenizer)
    texts = (
        encode(tokenizer, render(tokenizer, row["prompt"]), continued(row["gold"], prefix))
        for row in rows
    )
    return [
        {
            "input_ids": [*text.prompt, *text.answer],
            "completion_mask": [0] * len(text.prompt) + [1] * len(text.answer),
        }
        for text in texts
    ]


def trainer_for(
    training: Training, rows: Sequence[Row], model: Any, tokenizer: Any, output: Path
) -> Any:
    """TRL's SFTTrainer on the prompts and gold answers of ``rows``."""
    from datasets import Dataset
    from trl import SFTTrainer

    trainer = SFTTrainer(
        model=model,
        args=sft_config(training.recipe, output),
        train_dataset=Dataset.from_list(examples(tokenizer, rows)),
        processing_class=tokenizer,
    )
    return hold_adapters_whole(trainer, training.recipe.quantised)


def run(recipe: Recipe, force: bool, arm: str = "sft") -> None:
    """Train an arm on prompts and gold answers; the merged result is ``<arm>/model``."""
    training = training_of(recipe, arm, "sft")
    run_trainer(training, force, partial(trainer_for, training, training.rows()))


def main() -> None:
    parser = recipe_arguments(__doc__.split("\n")[0])
    parser.add_argument("--arm", default="sft", help="the arm of the recipe to train")
    arguments = parser.parse_args()
    run(recipe_from(arguments), arguments.force, arguments.arm)


if __name__ == "__main__":
    run_main(main)
