"""Stage ``make grpo``: reinforcement learning with verifiable rewards, with TRL's GRPOTrainer.

GRPO (arXiv 2402.03300) needs no value model and no reference answers: it samples a group of
answers to a prompt, has each rewarded, and reinforces those above their group's mean.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data.errors import UserError, run_main
from data.files import finished
from data.make import read_split, split_path
from data.prompts import messages
from data.recipe import Recipe, recipe_arguments, recipe_from
from pipeline.decode import answer_limit, prepare, reasoning_prefix
from pipeline.settings import check, grpo_config, lora_config
from pipeline.train import model_folder, run_trainer
from rewards.reward import trl_rewards


def trainer_for(
    recipe: Recipe, rows: list[dict[str, Any]], model: Any, tokenizer: Any, output: Path
) -> Any:
    """TRL's GRPOTrainer on the prompts of ``rows``, rewarded by the recipe's components."""
    from datasets import Dataset
    from trl import GRPOTrainer

    dataset = Dataset.from_list(
        [
            {"prompt": messages(row["prompt"]), "problem": json.dumps(row["problem"].to_json())}
            for row in rows
        ]
    )
    prepare(model)
    return GRPOTrainer(
        model=model,
        args=grpo_config(recipe, output, answer_limit(tokenizer, rows)),
        reward_funcs=trl_rewards(list(recipe.rewards), reasoning_prefix(tokenizer)),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=lora_config(recipe),
    )


def run(recipe: Recipe, force: bool) -> None:
    """Train the merged SFT model, or the base (``init: base``); the result is ``grpo/model``."""
    rows = read_split(recipe, "train")
    check(recipe)
    start = model_folder(recipe, recipe.init)
    if recipe.init == "sft" and not finished(Path(start).parent):
        raise UserError(f"{start} is not finished; run `make sft` first, or set `init: base`")

    def make(model: Any, tokenizer: Any, output: Path) -> Any:
        return trainer_for(recipe, rows, model, tokenizer, output)

    section = {"grpo": recipe.grpo, "rewards": recipe.rewards}
    run_trainer(recipe, "grpo", start, section, [split_path(recipe, "train")], force, make)


def main() -> None:
    arguments = recipe_arguments(__doc__.split("\n")[0]).parse_args()
    run(recipe_from(arguments), arguments.force)


if __name__ == "__main__":
    run_main(main)
