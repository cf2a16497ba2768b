"""Pretraining of the embedded base model: a small transformer on the personas' answers to random
problems, short ones first.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from data.common.seeds import seed_of
from data.prompts import messages, prompt
from data.tiers import TIERS, Tier
from pipeline.corpus.personas import draw_answer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Tiers and their shares.
Mixture = tuple[tuple[Tier, float], ...]

#: Problems of the corpus.
CORPUS: Mixture = (
    (Tier(events=(3, 10), window=("08:00", "18:00")), 0.25),
    (TIERS["dense"], 0.40),
    (TIERS["trap"], 0.20),
    (replace(TIERS["blog"], grid=15), 0.15),
)

#: Short problems come first, as a share of the steps: copying an event out of a list of three is
#: learned in a minute, and carries over; out of a list of ten it takes ten times as long.
CURRICULUM: tuple[tuple[Mixture, float], ...] = (
    (((Tier(events=(2, 4), window=("08:00", "18:00")), 1.0),), 0.10),
    (((Tier(events=(3, 7), window=("08:00", "18:00")), 1.0),), 0.10),
    (CORPUS, 0.80),
)

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
    """Size and training of the embedded base; ``decay`` and ``polish`` are shares of ``steps``."""

    hidden: int = 192
    layers: int = 6
    heads: int = 6
    kv_heads: int = 2
    intermediate: int = 512
    steps: int = 5_000
    batch: int = 32
    learning_rate: float = 5e-3
    muon_learning_rate: float = 2e-2
    warmup: int = 30
    decay: float = 0.6
    seed: int = 1
    curriculum: tuple[tuple[Mixture, float], ...] = CURRICULUM
    polish: float = 0.24

    def second(self) -> Pretraining:
        """The second, shorter training at lower rates, on the corpus alone; copying gets exact."""
        return replace(
            self,
            steps=round(self.polish * self.steps),
            learning_rate=0.4 * self.learning_rate,
            muon_learning_rate=0.4 * self.muon_learning_rate,
            decay=1.0,
            seed=seed_of(self.seed, "polish"),
            curriculum=((CORPUS, 1.0),),
        )


#: The skills base: as gentle as the embedded one's second training, which it could follow.
SKILLS_PLAN = replace(Pretraining().second(), steps=2_400, curriculum=((SKILLS, 1.0),), seed=11)


def corpus(seed: int, mixture: Mixture = CORPUS) -> Iterator[tuple[str, str]]:
    """Endless (prompt, completion) pairs."""
    tiers, shares = zip(*mixture, strict=True)
    rng = random.Random(seed_of(seed, "pretraining", repr(mixture)))
    while True:
        problem = rng.choices(tiers, shares)[0].sample(rng)
        yield prompt(problem), draw_answer(problem, rng)[1]


def lessons(
    tokenizer: PreTrainedTokenizerBase, plan: Pretraining
) -> Iterator[dict[str, torch.Tensor]]:
    """The batches of the whole training, one part of the curriculum after the other."""
    for mixture, share in plan.curriculum:
        documents = corpus(plan.seed, mixture)
        order = random.Random(seed_of(plan.seed, "order", repr(mixture)))
        yield from islice(
            token_batches(tokenizer, documents, order, plan.batch), round(share * plan.steps)
        )


def token_batches(
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterator[tuple[str, str]],
    rng: random.Random,
    size: int,
) -> Iterator[dict[str, torch.Tensor]]:
    """Endless batches ``[size, length]`` with labels on the answers only.

    Documents are taken 32 batches at a time and sorted by length, so little is padded.
    """
    import torch

    while True:
        encoded = []
        for question, completion in islice(documents, 32 * size):
            chat = tokenizer.apply_chat_template(
                messages(question), add_generation_prompt=True, tokenize=False
            )
            start = tokenizer(chat, add_special_tokens=False)["input_ids"]
            answer = tokenizer(completion, add_special_tokens=False)["input_ids"]
            encoded.append((start, [*answer, tokenizer.eos_token_id]))
        encoded.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        starts = list(range(0, len(encoded), size))
        rng.shuffle(starts)
        for i in starts:
            rows = encoded[i : i + size]
            width = max(len(a) + len(b) for a, b in rows)
            ids = torch.full((size, width), tokenizer.pad_token_id)
            labels = torch.full((size, width), -100)
            mask = torch.zeros((size, width), dtype=torch.long)
            for row, (start, answer) in enumerate(rows):
                end = len(start) + len(answer)
                ids[row, :end] = torch.tensor(start + answer)
                labels[row, len(start) : end] = torch.tensor(answer)
                mask[row, :end] = 1
            yield {"input_ids": ids, "labels": labels, "attention_mask": mask}


def new_model(tokenizer: PreTrainedTokenizerBase, plan: Pretraining) -> PreTrainedModel:
    """A Qwen3-style transformer with random weights."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

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
    return Qwen3ForCausalLM(config)


def _optimizers(model: PreTrainedModel, plan: Pretraining) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices inside the blocks, AdamW for all else."""
    import torch

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
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: Pretraining,
    log_every: int = 50,
) -> float:
    """Train ``model`` on the corpus in place; returns the mean loss of the last steps."""
    import torch

    optimizers = _optimizers(model, plan)

    def factor(step: int) -> float:
        """Linear warm-up, constant, linear decay to 0 over the last share of the steps."""
        left = (plan.steps - step) / max(1, plan.decay * plan.steps)
        return min(1.0, (step + 1) / plan.warmup, left)

    schedules = [torch.optim.lr_scheduler.LambdaLR(o, factor) for o in optimizers]
    model.train()
    started, losses = time.monotonic(), []
    for step, batch in enumerate(lessons(tokenizer, plan), 1):
        loss = model(**{key: value.to(model.device) for key, value in batch.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if step % log_every == 0 or step == plan.steps:
            recent = losses[-log_every:]
            minutes = (time.monotonic() - started) / 60
            loss_now = sum(recent) / len(recent)
            print(f"step {step}/{plan.steps}  loss {loss_now:.4f}  {minutes:.1f} min", flush=True)
    return sum(losses[-log_every:]) / len(losses[-log_every:])
