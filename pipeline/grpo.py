"""Stage ``make grpo``: reinforcement learning with verifiable rewards, with TRL's GRPOTrainer.

GRPO (arXiv 2402.03300) needs no value model and no reference answers: it samples a group of
answers to a prompt, has each rewarded, and reinforces those above their group's mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from data.common.errors import run_main
from data.prompts import messages
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import Row, longest_told, problems_by_tier
from pipeline.model.decode import answer_limit, prepare, reasoning_prefix, stop_ids
from pipeline.train.loading import hold_adapters_whole
from pipeline.train.settings import grpo_config
from pipeline.train.trainer import run_trainer
from pipeline.train.training import Training, training_of
from pipeline.train.vllm import longest_text, tell_vllm
from rewards.audit import gate
from rewards.reward import reward_functions


def trainer_for(
    training: Training, rows: Sequence[Row], model: Any, tokenizer: Any, output: Path
) -> Any:
    """TRL's GRPOTrainer on the prompts of ``rows``, with the recipe's reward."""
    from datasets import Dataset
    from trl import GRPOTrainer

    from pipeline.train.prompt_once import trainer_class
    from pipeline.train.rollouts import Dynamic, rollouts_for

    recipe = training.recipe
    examples = [{"prompt": messages(row["prompt"]), "problem": row["problem"].text} for row in rows]
    prepare(model)
    stops = set(stop_ids(model.generation_config, tokenizer))
    longest = longest_told(rows, recipe.data, recipe.arms.values())
    args = grpo_config(recipe, output, answer_limit(tokenizer, longest))
    if args.use_vllm:
        length = recipe.max_seq_length or longest_text(tokenizer, rows, args)
        stops = tell_vllm(args, stops, length, model.config.get_text_config(decoder=True))
    is_ours = not training.backend.is_unsloth  # whose trainer draws and trains by its own kernels
    rollout = rollouts_for(args, recipe.sampling, rows) if is_ours else None
    trainer = (trainer_class(model, args) if is_ours else GRPOTrainer)(
        model=model,
        args=args,
        reward_funcs=[*reward_functions(recipe.reward, reasoning_prefix(tokenizer), stops)],
        train_dataset=Dataset.from_list(examples),
        processing_class=tokenizer,
        rollout_func=rollout,
        callbacks=[rollout] if isinstance(rollout, Dynamic) else None,
    )
    return hold_adapters_whole(trainer, recipe.quantised)


def run(recipe: Recipe, force: bool, arm: str = "grpo") -> None:
    """Train an arm on prompts and the reward alone; the merged result is ``<arm>/model``.

    Raises:
        UserError: when the reward fails its audit, unless the recipe says to train all the same.
    """
    training = training_of(recipe, arm, "grpo")
    rows, reward, sampling = training.rows(), training.recipe.reward, training.recipe.sampling
    audited = partial(gate, reward, problems_by_tier(rows), training.recipe.seed, training.source)
    more = {"reward": reward.key, **({"sampling": asdict(sampling)} if sampling else {})}
    run_trainer(training, force, partial(trainer_for, training, rows), more, audited)


def main() -> None:
    parser = recipe_arguments(__doc__.split("\n")[0])
    parser.add_argument("--arm", default="grpo", help="the arm of the recipe to train")
    arguments = parser.parse_args()
    run(recipe_from(arguments), arguments.force, arguments.arm)


if __name__ == "__main__":
    run_main(main)
