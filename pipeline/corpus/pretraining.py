"""Pretraining of the embedded base model: a small transformer on the personas' answers to random
problems, short ones first.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from statistics import fmean
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from data.common.seeds import seed_of
from data.prompts import prompt
from data.tiers import TIERS, Tier
from pipeline.corpus.personas import PERSONAS, draw_answer, personas_with
from pipeline.corpus.tokens import content_vectors
from pipeline.model.decode import render
from pipeline.model.score import encode

#: Tiers and their shares.
Mixture = tuple[tuple[Tier, float], ...]

#: Problems of the corpus.
CORPUS: Mixture = (
    (Tier(events=(3, 10), window=("08:00", "18:00")), 0.20),
    (Tier(events=(10, 18), window=("08:00", "20:00")), 0.15),
    (TIERS["busy"], 0.20),
    (TIERS["dense"], 0.20),
    (TIERS["trap"], 0.15),
    (replace(TIERS["blog"], grid=15), 0.10),
)

#: Short problems come first, as a share of the steps.
CURRICULUM: tuple[tuple[Mixture, float], ...] = (
    (((Tier(events=(2, 4), window=("08:00", "18:00")), 1.0),), 0.08),
    (((Tier(events=(3, 7), window=("08:00", "18:00")), 1.0),), 0.12),
    (CORPUS, 0.80),
)

#: How much more the tokens of a schedule weigh than those of the reasoning, which are many more.
SCHEDULE_WEIGHT = 4.0

#: Tokens of a usual answer, by which sums of losses are divided.
TOKENS = 100

#: Steps whose mean loss is printed.
_LOGGED = 50

#: Problems of the skills base, which goes on from the embedded one: half as before, half with one
#: of the rules in ``SHOWN``. Days of many short events let a schedule have at least one event more
#: than ``at_most`` allows, and nearly four on average.
SKILLS: Mixture = (
    *((tier, share / 2) for tier, share in CORPUS),
    (TIERS["gap"], 0.25),
    (
        replace(
            TIERS["at_most"], events=(10, 12), window=("08:00", "18:00"), durations=(15, 60, 15)
        ),
        0.25,
    ),
)


@dataclass(frozen=True)
class Pretraining:
    """Size and training of the embedded base.

    Attributes:
        decay: share of the steps in which the rates fall to 0.
        thinking: share of the base's answers that compute.
        practice: share of the documents that do; null for the same. Where they are more, the first
            token of a document, which chooses the way of answering, weighs as much as makes the
            base think as often as ``thinking`` says.
    """

    hidden: int = 128
    layers: int = 6
    heads: int = 4
    kv_heads: int = 4
    intermediate: int = 384
    steps: int = 3_000
    batch: int = 32
    learning_rate: float = 3e-3
    muon_learning_rate: float = 2e-2
    warmup: int = 30
    decay: float = 0.6
    seed: int = 1
    thinking: float = PERSONAS["thinking"].weight
    practice: float | None = 0.6
    curriculum: tuple[tuple[Mixture, float], ...] = CURRICULUM

    def continued(self, mixture: Mixture) -> Pretraining:
        """A shorter training that goes on from a finished one, at lower rates and on documents in
        the shares of the base's answers."""
        return replace(
            self,
            steps=self.steps // 3,
            learning_rate=0.4 * self.learning_rate,
            muon_learning_rate=0.4 * self.muon_learning_rate,
            decay=1.0,
            practice=None,
            seed=seed_of(self.seed, "continued"),
            curriculum=((mixture, 1.0),),
        )


class Document(NamedTuple):
    """A prompt, an answer to it, and how much the answer's first token weighs in the loss."""

    prompt: str
    completion: str
    opening_weight: float


def corpus(plan: Pretraining, mixture: Mixture = CORPUS) -> Iterator[Document]:
    """Endless documents on the problems of a mixture, in the shares of a plan."""
    share = plan.thinking
    practice = plan.practice if share and plan.practice else share
    drawn = {name: persona.weight for name, persona in personas_with(practice).items()}
    tiers, shares = zip(*mixture, strict=True)
    rng = random.Random(seed_of(plan.seed, "pretraining", repr(mixture)))
    while True:
        problem = rng.choices(tiers, shares)[0].sample(rng)
        name, completion = draw_answer(problem, rng, drawn)
        thinks = name == "thinking"
        weight = share / practice if thinks else (1 - share) / (1 - practice)
        yield Document(prompt(problem), completion, weight)


def lessons(
    tokenizer: PreTrainedTokenizerBase, plan: Pretraining
) -> Iterator[dict[str, torch.Tensor]]:
    """The batches of the whole training, one part of the curriculum after the other."""
    for mixture, share in plan.curriculum:
        documents = corpus(plan, mixture)
        order = random.Random(seed_of(plan.seed, "order", repr(mixture)))
        yield from islice(
            token_batches(tokenizer, documents, order, plan.batch, balanced=bool(plan.practice)),
            round(share * plan.steps),
        )


def token_batches(
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterator[Document],
    rng: random.Random,
    size: int,
    balanced: bool = False,
) -> Iterator[dict[str, torch.Tensor]]:
    """Endless batches ``[size, length]`` of token ids, with the weight of each in the loss: above 0
    on the answers only.

    Documents are taken 32 batches at a time and sorted by length, so little is padded. Where
    ``balanced``, by the length of their prompts: more is padded, and every batch has all ways of
    answering, whose shares a fast training would else lose.
    """
    schedule = tokenizer.convert_tokens_to_ids("<schedule>\n")
    while True:
        encoded = []
        for document in islice(documents, 32 * size):
            text = encode(tokenizer, render(tokenizer, document.prompt), document.completion)
            *answer, _ = text.answer
            reasoned = answer.index(schedule) if schedule in answer else len(answer)
            weights = [1.0] * reasoned + [SCHEDULE_WEIGHT] * (len(answer) + 1 - reasoned)
            weights[0] = document.opening_weight
            encoded.append((text, weights))
        encoded.sort(key=lambda item: len(item[0].prompt if balanced else item[0]))
        starts = list(range(0, len(encoded), size))
        rng.shuffle(starts)
        for i in starts:
            rows = encoded[i : i + size]
            width = max(len(text) for text, _ in rows)
            ids = torch.full((size, width), tokenizer.pad_token_id)
            weighted = torch.zeros((size, width))
            mask = torch.zeros((size, width), dtype=torch.long)
            for row, (text, weights) in enumerate(rows):
                ids[row, : len(text)] = torch.tensor([*text.prompt, *text.answer])
                weighted[row, len(text.prompt) : len(text)] = torch.tensor(weights)
                mask[row, : len(text)] = 1
            yield {"input_ids": ids, "attention_mask": mask, "weights": weighted}


def new_model(tokenizer: PreTrainedTokenizerBase, plan: Pretraining) -> PreTrainedModel:
    """A Qwen3-style transformer with random weights."""
    torch.manual_seed(plan.seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=plan.hidden,
        num_hidden_layers=plan.layers,
        num_attention_heads=plan.heads,
        num_key_value_heads=plan.kv_heads,
        head_dim=plan.hidden // plan.heads,
        intermediate_size=plan.intermediate,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    vectors = content_vectors(tokenizer, plan.hidden, plan.seed)
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    embeddings.weight.data.copy_(vectors)
    return model


def weighted_loss(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Weighted sum of the tokens' losses, over ``TOKENS`` a document.

    A mean over the tokens of each batch would make documents beside long ones weigh less, and with
    them the choice of a way of answering.
    """
    weights = batch["weights"][:, 1:]
    told = weights > 0
    outputs = model.base_model(batch["input_ids"], attention_mask=batch["attention_mask"])
    # Logits of the answers alone: the prompts are a third of all tokens.
    logits = model.get_output_embeddings()(outputs.last_hidden_state[:, :-1][told])
    losses = torch.nn.functional.cross_entropy(
        logits, batch["input_ids"][:, 1:][told], reduction="none"
    )
    return (losses * weights[told]).sum() / (len(weights) * TOKENS)


def _optimizers(model: PreTrainedModel, plan: Pretraining) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices inside the blocks, AdamW for all else."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inside = ".layers." in name and parameter.ndim == 2
        (matrices if inside else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=plan.muon_learning_rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=plan.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def pretrain(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, plan: Pretraining
) -> float:
    """Train ``model`` on the corpus in place; returns the mean loss of the last steps."""
    optimizers = _optimizers(model, plan)

    def factor(step: int) -> float:
        """Linear warm-up, constant, linear decay to 0 over the last share of the steps."""
        left = (plan.steps - step) / max(1, plan.decay * plan.steps)
        return min(1.0, (step + 1) / plan.warmup, left)

    schedules = [torch.optim.lr_scheduler.LambdaLR(o, factor) for o in optimizers]
    model.train()
    started, losses = time.monotonic(), deque[float](maxlen=_LOGGED)
    for step, batch in enumerate(lessons(tokenizer, plan), 1):
        loss = weighted_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if step % _LOGGED == 0 or step == plan.steps:
            minutes, recent = (time.monotonic() - started) / 60, fmean(losses)
            print(f"step {step}/{plan.steps}  loss {recent:.4f}  {minutes:.1f} min", flush=True)
    return fmean(losses)
