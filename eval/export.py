"""Stage ``make export``: a trained arm as a model folder for others, with its card.

Writes ``runs/<run>/export/<arm>`` as the Hugging Face hub has it: the merged weights as they are
evaluated, tokenizer, chat template, ``generation_config.json`` with the decoding of the evaluation,
``report.json`` with its results, and ``README.md``, a model card made from the run's own files
(``eval.show.card``).
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from data.common.errors import UserError, run_main
from data.common.files import BEGUN, Stage, write_json, write_text
from data.recipe import Recipe, recipe_arguments, recipe_from
from data.rows import read_split
from data.run import BASE, goal
from data.sections import EvalSection
from eval.show.card import card_text
from eval.show.lineage import evaluation, lineage
from pipeline.model.decode import answer_limit, stop_ids
from pipeline.model.load import check_model_folder, read_tokenizer

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

CARD = "README.md"


def run(recipe: Recipe, arm: str, force: bool = False) -> Path:
    """Export a trained arm, unless that is done; returns its folder.

    Raises:
        UserError: where there is nothing to export, or the weights are not whole.
    """
    run = recipe.run
    if arm == BASE or run.arms[arm].trainer == "none":
        raise UserError(
            f"there is nothing to export: {arm} has no weights of its own; name a trained arm "
            f"(ARM=grpo), or train one ({goal('arms')})"
        )
    model, out = Path(run.model(arm)), run.export(arm)
    check_model_folder(model)
    links = lineage(run, arm)
    result = evaluation(run, links)
    tokenizer = read_tokenizer(str(model))
    asking = result.asking if result else recipe.for_arm(arm).eval
    if asking.max_tokens is None:
        asking = replace(asking, max_tokens=answer_limit(tokenizer, read_split(run, "test")))
    text = card_text(run, recipe.data, links, result, asking)
    # The card names the weights by their hash, the recipe's decoding is not in it.
    settings = {"card": hashlib.sha256(text.encode()).hexdigest(), "asking": asdict(asking)}
    stage = Stage(out, "export", settings, [run.report] if result else [])
    if not stage.begin_unless_done(force, list(out.glob("*"))):
        return out
    # Without the modes: safetensors makes files that only their owner may read.
    shutil.copytree(model, out, dirs_exist_ok=True, copy_function=shutil.copyfile)
    decoding(asking, model, tokenizer).save_pretrained(out)
    if result:
        write_json(out / "report.json", result.report)
    write_text(out / CARD, text)
    stage.finish(sorted(path.name for path in out.iterdir() if path.name != BEGUN))
    print(
        f"export: {out}; `.venv/bin/hf upload OWNER/NAME {out} --exclude manifest.json` "
        "publishes it",
        flush=True,
    )
    return out


def decoding(
    asking: EvalSection, model: Path, tokenizer: PreTrainedTokenizerBase
) -> GenerationConfig:
    """The decoding of the evaluation, in transformers' words. Of the model's own settings only the
    tokens are kept: the evaluation used no others."""
    from transformers import GenerationConfig

    own = GenerationConfig.from_pretrained(model)
    padding = tokenizer.pad_token_id
    drawn = {"temperature": asking.temperature, "top_p": asking.top_p}
    return GenerationConfig(
        do_sample=asking.temperature > 0,
        # transformers would keep the 50 likeliest tokens
        **({**drawn, "top_k": 0} if asking.temperature > 0 else {}),
        max_new_tokens=asking.max_tokens,
        bos_token_id=own.bos_token_id,
        eos_token_id=stop_ids(own, tokenizer),
        pad_token_id=tokenizer.eos_token_id if padding is None else padding,
    )


def main() -> None:
    parser = recipe_arguments(__doc__.split("\n")[0])
    parser.add_argument("--arm", help="the arm to export (default: the last one that is trained)")
    arguments = parser.parse_args()
    recipe = recipe_from(arguments)
    run(recipe, recipe.run.chosen(arguments.arm), arguments.force)


if __name__ == "__main__":
    run_main(main)
