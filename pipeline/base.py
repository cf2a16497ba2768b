"""Builds the embedded base model: a tokenizer and a small transformer, pretrained from scratch on
the personas' answers to random problems (``make base``).

With ``--from MODEL`` an existing model's pretraining is continued on the same corpus instead; with
``--skills`` the embedded one's on a corpus with further rules, for the experiment of known truth.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from jinja2 import Template

from data.common.errors import UserError, require, run_main
from data.common.files import write_text
from data.recipe import RUNS
from pipeline.corpus import pretraining
from pipeline.corpus.personas import PERSONAS, SHOWN
from pipeline.corpus.pretraining import SKILLS_PLAN, Pretraining, new_model, pretrain
from pipeline.corpus.tokens import build_tokenizer
from pipeline.model.load import load_model, write_model

#: Folder of the embedded base model, which recipes name by default.
BASE_PATH = Path(__file__).parent / "embedded"
CARD_TEMPLATE = Path(pretraining.__file__).with_name("card.md.j2")


def build_base(plans: Sequence[Pretraining], folder: Path, start: str | None = None) -> None:
    """Pretrain a new model, or go on with ``start``, through all plans, one after the other, and
    write it to ``folder`` with its card."""
    import torch

    if start:
        model, tokenizer = load_model(start, "float32")
    else:
        tokenizer = build_tokenizer()
        model = new_model(tokenizer, plans[0])
    started = time.monotonic()
    loss = [pretrain(model, tokenizer, plan) for plan in plans][-1]
    minutes = (time.monotonic() - started) / 60
    torch.nn.Module.to(model, torch.bfloat16)
    write_model(model, tokenizer, folder)
    write_text(folder / "README.md", card(plans, model.num_parameters(), loss, minutes, start))
    print(f"base: {folder}", flush=True)


def card(
    plans: Sequence[Pretraining], parameters: int, loss: float, minutes: float, start: str | None
) -> str:
    """The model card: what it is, what it was trained on, and so what it can do."""
    [(mixture, _)] = plans[-1].curriculum
    return Template(CARD_TEMPLATE.read_text(encoding="utf-8"), keep_trailing_newline=True).render(
        plans=plans,
        parameters=parameters,
        loss=loss,
        minutes=minutes,
        start=start,
        mixture=[(asdict(tier), share) for tier, share in mixture],
        kinds=dict.fromkeys(kind for tier, _ in mixture for kind in tier.kinds),
        personas=PERSONAS,
        shown=SHOWN,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--from", dest="start", help="folder or hub id of a model to continue, instead of a new one"
    )
    parser.add_argument(
        "--skills",
        action="store_true",
        help="go on with the embedded base on a corpus that shows one further rule kept by half of "
        "the answers, and another one always broken",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for the model (default: the embedded one; runs/base/model for a continued "
        "one, runs/skills/base/model with --skills)",
    )
    parser.add_argument("--steps", type=int, help="optimizer steps (default: by what is trained)")
    parser.add_argument("--batch", type=int, default=Pretraining.batch, help="documents a step")
    parser.add_argument("--seed", type=int, help="of corpus and weights (default: likewise)")
    arguments = parser.parse_args()
    for name in ("steps", "batch"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise UserError(f"--{name} must be 1 or more")
    require(
        not (arguments.skills and arguments.start),
        "--skills goes on with the embedded base; leave --from out",
    )
    plan = SKILLS_PLAN if arguments.skills else Pretraining()
    given = {"steps": arguments.steps, "batch": arguments.batch, "seed": arguments.seed}
    plan = replace(plan, **{key: value for key, value in given.items() if value is not None})
    if arguments.skills:
        folder = arguments.out or RUNS / "skills" / "base" / "model"
        build_base([plan], folder, os.path.relpath(BASE_PATH))
    elif arguments.start:
        # Gentler, so that what the model knows already is not washed out.
        plan = replace(plan, learning_rate=1e-4, muon_learning_rate=1e-3)
        folder = arguments.out or RUNS / "base" / "model"
        build_base([plan, plan.second()], folder, arguments.start)
    else:
        build_base([plan, plan.second()], arguments.out or BASE_PATH)


if __name__ == "__main__":
    run_main(main)
