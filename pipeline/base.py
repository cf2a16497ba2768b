"""Builds the embedded base model: a tokenizer and a small transformer, pretrained from scratch on
the personas' answers to random problems (``make base``).

With ``--from MODEL`` an existing model's pretraining is continued on the same corpus instead; with
``--skills`` the embedded one's on a corpus with further rules, for the experiment of known truth.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path

import torch
from jinja2 import Template
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.common.errors import UserError, require, run_main
from data.common.files import write_text
from data.common.flags import Parser
from data.draw import make_problem
from data.prompts import prompt
from data.recipe import RUNS
from data.tiers import TIERS
from pipeline.corpus import pretraining
from pipeline.corpus.personas import SHOWN, persona_of, personas_with
from pipeline.corpus.pretraining import CORPUS, SKILLS, Pretraining, new_model, pretrain
from pipeline.corpus.tokens import build_tokenizer
from pipeline.model.decode import prepare, render, sample
from pipeline.model.decoding import Decoding
from pipeline.model.load import load_model, write_model
from rewards.verify import Status, verify

#: Folder of the embedded base model, which recipes name by default.
BASE_PATH = Path(__file__).parent / "embedded"
#: Problems of the card's measurements, and answers to each.
PROBLEMS, SAMPLES = 100, 16
#: Violations of a schedule whose events are not the day's.
_MISCOPIED = {"unknown_event", "altered_time"}
#: By persona: its share of the answers, and the shares of those that are optimal, and copied.
Shares = dict[str, tuple[float, ...]]
CARD_TEMPLATE = Path(pretraining.__file__).with_name("card.md.j2")


def build_base(plan: Pretraining, folder: Path, start: str | None = None) -> None:
    """Pretrain a new model, or go on with ``start``, and write it to ``folder`` with its card."""
    if start:
        model, tokenizer = load_model(start, "float32")
    else:
        tokenizer = build_tokenizer()
        model = new_model(tokenizer, plan)
    started = time.monotonic()
    loss = pretrain(model, tokenizer, plan)
    minutes = (time.monotonic() - started) / 60
    torch.nn.Module.to(model, torch.bfloat16)
    write_model(model, tokenizer, folder)
    shares = persona_shares(model, tokenizer)
    text = card(plan, model.num_parameters(), loss, minutes, start, shares)
    write_text(folder / "README.md", text)
    print(f"base: {folder}", flush=True)


def persona_shares(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Shares:
    """Shares of answers by the persona that their opening tells: all of them, the optimal ones, and
    those that have no event but the day's."""
    problems = [make_problem(0, "card", "dense", TIERS["dense"], i) for i in range(PROBLEMS)]
    prompts = [render(tokenizer, prompt(p)) for p in problems]
    prepare(model)
    found: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    decoding = Decoding(max_tokens=300)
    for i, answers in sample(
        model, tokenizer, prompts, SAMPLES, decoding, range(PROBLEMS), rows=256
    ):
        for answer in answers:
            verdict = verify(problems[i], answer.completion)
            kinds = {violation.partition(":")[0] for violation in verdict.violations}
            copied = verdict.status != Status.UNPARSABLE and not kinds & _MISCOPIED
            found[persona_of(answer.completion)].append((verdict.status == Status.OPTIMAL, copied))
    return {
        name: (
            len(answers) / (PROBLEMS * SAMPLES),
            *(sum(column) / len(answers) for column in zip(*answers, strict=True)),
        )
        for name, answers in found.items()
    }


def card(
    plan: Pretraining,
    parameters: int,
    loss: float,
    minutes: float,
    start: str | None,
    of_personas: Shares | None = None,
) -> str:
    """The model card: what it is, what it was trained on, and so what it can do."""
    mixture, _ = plan.curriculum[-1]
    return Template(CARD_TEMPLATE.read_text(encoding="utf-8"), keep_trailing_newline=True).render(
        plan=plan,
        parameters=parameters,
        loss=loss,
        minutes=minutes,
        start=start,
        mixture=[(asdict(tier), share) for tier, share in mixture],
        kinds=dict.fromkeys(kind for tier, _ in mixture for kind in tier.kinds),
        personas=personas_with(plan.thinking),
        shown=SHOWN,
        measured=of_personas or {},
        answers=f"{PROBLEMS} problems of `dense`, {SAMPLES} answers each",
    )


def main() -> None:
    parser = Parser(description=__doc__.split("\n")[0])
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
    parser.add_argument(
        "--thinking",
        type=float,
        default=Pretraining.thinking,
        help="share of the answers that compute before they choose (default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, help="optimizer steps (default: by what is trained)")
    parser.add_argument(
        "--batch",
        type=int,
        default=Pretraining.batch,
        help="documents a step (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, help="of corpus and weights (default: likewise)")
    arguments = parser.parse_args()
    for name in ("steps", "batch"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise UserError(f"--{name} must be 1 or more")
    require(0 <= arguments.thinking < 1, "--thinking must be a share, from 0 to below 1")
    require(
        not (arguments.skills and arguments.start),
        "--skills goes on with the embedded base; leave FROM= (--from) out",
    )
    plan, start, folder = Pretraining(), arguments.start, BASE_PATH
    if arguments.skills:
        plan, start = plan.continued(SKILLS), os.path.relpath(BASE_PATH)
        folder = RUNS / "skills" / "base" / "model"
    elif start:
        plan, folder = plan.continued(CORPUS), RUNS / "base" / "model"
    given = {key: getattr(arguments, key) for key in ("steps", "batch", "seed", "thinking")}
    plan = replace(plan, **{key: value for key, value in given.items() if value is not None})
    build_base(plan, arguments.out or folder, start)


if __name__ == "__main__":
    run_main(main)
