"""Are answers drawn from the model that is trained, and not from another one in silence?

An engine that lost the adapter, kept old weights or has another temperature still gives answers,
and GRPO still learns something from them. But a token drawn from p has the surprise -log p, whose
mean is the entropy H(p) and whose variance V(p) is known too. So the trained model reads some
answers as they come, whoever drew them: d = surprise - entropy of each token is a fair game.

How much of it is chance: let D be d less what rounding may add, and S their sum over the tokens,
in the order in which they were drawn. As exp(x - x²/6) <= 1 + x + x²/3 (Delyon, Electron. J.
Probab. 2009), exp(l S - l² Y / 2) with Y = sum of (D² + 2 E[D²]) / 3 is a supermartingale for any
l > 0. So is its mean over l from a half-normal distribution of variance 1 / UNIT (the method of
mixtures: de la Peña, Klass and Lai, Ann. Probab. 2004), and by Markov's inequality

    P(S > sqrt((Y + UNIT) (2 log(1 / ALARM) + log(1 + Y / UNIT)))) <= ALARM

for any model and vocabulary, however skewed the surprise; twice that for both signs. 100,000
measurements raise one false alarm with a probability of at most 2e-4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from pipeline.model.score import Encoded, surprises
from pipeline.watch.val import undisturbed

#: Answers that are read, and steps from one measurement to the next.
ANSWERS, EVERY = 32, 5
#: Nats a token that rounding may add: engines in bfloat16 are about 0.02 apart (arXiv 2510.26788).
ROUNDING = 0.05
#: Probability of a false alarm; squared nats at which the bound is closest.
ALARM, UNIT = 1e-9, 10.0


def measure_surplus(
    trainer: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> dict[str, float]:
    """``surplus_of`` the first answers of a generation of TRL's GRPO trainer, of all its processes,
    as signals of the log."""
    args, sums = trainer.args, torch.zeros(4, dtype=torch.float64)
    asked = zip(prompts[:ANSWERS], answers[:ANSWERS], strict=True)
    texts = [Encoded(tuple(prompt), tuple(answer)) for prompt, answer in asked]
    with undisturbed(trainer) as model:
        for surprise, entropy, spread in surprises(model, texts, args.temperature):
            d = surprise - entropy
            parts = (torch.ones_like(d), d, d.square(), spread)
            sums += torch.stack([part.double().sum() for part in parts]).cpu()
    of_all = trainer.accelerator.reduce(sums.to(trainer.accelerator.device))
    tokens, total, squares, variance = of_all.tolist()
    cut = args.top_p < 1 or bool(args.top_k) or bool(args.min_p)
    found, limit = surplus_of(tokens, total, squares, variance, not cut)
    return {"sampling/surplus": found, "sampling/surplus_limit": limit}


def surplus_of(
    tokens: float, total: float, squares: float, variance: float, both: bool
) -> tuple[float, float]:
    """How many nats a token answers surprise the model more, or with ``both`` less, than its own
    would, and the most that chance and rounding explain. Sampling that leaves out what is unlikely
    surprises less, so only more counts there.

    Args:
        tokens: how many.
        total, squares, variance: sums over them of d, of d² and of the variance of the surprise.
    """
    over = abs(total) if both else total
    spread = (squares - 2 * ROUNDING * over + 2 * variance) / 3 + tokens * ROUNDING**2
    odds = 2 * math.log(1 / ALARM) + math.log1p(spread / UNIT)
    return over / tokens, ROUNDING + math.sqrt((spread + UNIT) * odds) / tokens
