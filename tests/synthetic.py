"""Logs of trainings as TRL writes them, healthy and sick, made of random numbers.

``python -m tests.synthetic`` counts false alarms in healthy ones, and what it finds in sick ones.
"""

import argparse
import math
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from pipeline.health.diagnosis import Watch
from pipeline.health.logs import name_truth
from pipeline.health.symptom import Level

GROUP = 16


def grpo_log(
    seed,
    rows=60,
    each=5,
    groups=20,
    start=0.12,
    end=0.45,
    speed=3.0,
    entropy=(0.33, 0.2),
    kl=0.1,
    paid="graded",
):
    """A GRPO training that learns: the share of right answers goes from ``start`` to ``end``
    (``1 - exp(-speed * x)``), each row judged on ``groups`` groups of 16."""
    rng, of_reasoning = (np.random.default_rng(parts) for parts in (seed, [seed, 1]))
    log = []
    for row in range(rows):
        x = (1 - math.exp(-speed * (row + 1) / rows)) / (1 - math.exp(-speed))
        truth = start + (end - start) * x
        valid = max(0.65 + 0.25 * x, truth + 0.01)
        # Problems differ in how hard they are, so the answers of a group are alike.
        hard = rng.beta(1.5 * truth, 1.5 * (1 - truth), groups)
        right = rng.binomial(GROUP, hard)
        fits = right + rng.binomial(GROUP - right, (valid - truth) / (1 - truth))
        optimal, feasible = right.mean() / GROUP, fits.mean() / GROUP
        flat = float(np.mean((right == 0) | (right == GROUP)))
        reward, spread = {
            "graded": (0.05 + 0.15 * feasible + 0.2 * 0.8 * feasible + 0.6 * optimal, 0.3),
            "binary": (optimal, 0.35),
            "ranked": (0.5 + rng.normal(0, 1e-9), 0.3),
        }[paid]
        log.append(
            {
                "step": (row + 1) * each,
                "loss": rng.normal(0, 0.05),
                "grad_norm": 0.2 * rng.lognormal(0, 0.4) * (6 if rng.random() < 0.01 else 1),
                "learning_rate": 3e-4,
                "reward": reward,
                "reward_std": spread * rng.lognormal(0, 0.1),
                "rewards/optimal/mean": optimal,
                "rewards/validity/mean": feasible,
                "frac_reward_zero_std": flat if paid == "binary" else 0.0,
                "entropy": (entropy[0] + (entropy[1] - entropy[0]) * x) * rng.lognormal(0, 0.04),
                "kl": kl * x * rng.lognormal(0, 0.15),
                "completions/mean_length": 25 + rng.normal(0, 1),
                "completions/clipped_ratio": float(rng.random() < 0.1) * 0.02,
            }
        )
        reasoned = of_reasoning.binomial(groups * GROUP, 0.1 + 0.8 * x)
        log[-1]["reasoning/traced"] = reasoned / groups / GROUP
        log[-1]["reasoning/sound"] = of_reasoning.binomial(reasoned, 0.85) / groups / GROUP
        if row % 10 == 9:
            log[-1]["val/optimal"] = rng.binomial(200, truth) / 200
    return log


def sft_log(seed, rows=40, each=5, first=0.6, last=0.2):
    """An SFT training that learns."""
    rng = np.random.default_rng(seed)
    log = []
    for row in range(rows):
        x = 1 - math.exp(-4 * row / rows)
        loss = (first + (last - first) * x) * rng.lognormal(0, 0.04)
        log.append(
            {
                "step": (row + 1) * each,
                "loss": loss,
                "grad_norm": (1.5 * math.exp(-row / 3) + 0.3) * rng.lognormal(0, 0.2),
                "learning_rate": 2e-4,
                "entropy": loss * 1.2,
                "mean_token_accuracy": 1 - loss / 3,
            }
        )
        if row % 5 == 4:
            log[-1]["eval_loss"] = loss * 1.05 * rng.lognormal(0, 0.01)
    return log


def noisy_log(seed, groups, form_rises):
    """500 steps, each logged, of few groups of 8 answers: rows jump, and groups are often flat.
    Right answers come slowly, and later than the form."""
    rng = np.random.default_rng(seed)
    log = []
    for step in range(1, 501):
        chance = 0.35 + 0.25 * step / 500
        each = rng.binomial(8, rng.beta(2 * chance, 2 * (1 - chance), groups)) / 8
        formed = (0.3 + 0.7 * min(1, step / 125) if form_rises else 0.95) + rng.normal(0, 0.04)
        log.append(
            {
                "step": step,
                "loss": 1e-3 * rng.normal(),
                "grad_norm": 0.3 * rng.lognormal(0, 0.3),
                "learning_rate": 1e-6,
                "reward": each.mean() + formed,
                "reward_std": math.sqrt(chance * (1 - chance) + 0.1),
                "rewards/accuracy_reward/mean": each.mean(),
                "rewards/format_reward/mean": formed,
                "kl": 3e-2 * step / 500 * rng.lognormal(0, 0.2),
                "entropy": (0.3 - 0.1 * step / 500) * rng.lognormal(0, 0.25),
                "frac_reward_zero_std": np.isin(each, (0, 1)).mean(),
                "completions/clipped_ratio": 0.03,
            }
        )
    return log


def foreign(seed, rows=60, each=5, paid=1.0, kl=0.1, groups=20, spread=True, **settings):
    """A healthy run of somebody else's: a reward of up to ``paid``, another unit of the KL, and
    the truth under another name; without ``spread`` as older versions of TRL log it."""
    log = grpo_log(seed, rows, each, groups, kl=kl, **settings)
    mean, rng = "/mean" if spread else "", np.random.default_rng(seed)
    for row in log:
        truth, form = row.pop("rewards/optimal/mean"), row.pop("rewards/validity/mean")
        row["rewards/correctness_reward_func" + mean] = 2 * truth
        row["rewards/soft_format_reward_func" + mean] = 0.5 * form
        if spread:
            deviation = 2 * math.sqrt(truth * (1 - truth))
            row["rewards/correctness_reward_func/std"] = deviation * rng.uniform(0.9, 1.05)
            row["clip_ratio/region_mean"] = 0.0
        row.pop("val/optimal", None)
        row["reward"] *= paid
        row["reward_std"] *= paid
        row["completions/mean_length"] *= 20
    return log


FOREIGN = {
    "reward of up to 100": {"paid": 100.0},
    "KL in nats an answer": {"kl": 20.0},
    "KL in a small unit": {"kl": 1e-3},
    "every step logged": {"rows": 300, "each": 1, "groups": 4},
    "every 50 steps logged": {"rows": 20, "each": 50, "groups": 200, "kl": 5.0},
    "as older TRL logs": {"spread": False, "paid": 3.0, "groups": 2, "rows": 100},
}
HEALTHY = {
    "graded": {},
    "binary": {"paid": "binary"},
    "ranked": {"paid": "ranked"},
    "short": {"rows": 12, "end": 0.2, "speed": 0.5},
    "long": {"rows": 200, "each": 1, "end": 0.7},
    "few answers a row": {"rows": 100, "each": 1, "groups": 4},
    "nearly solved": {"rows": 100, "start": 0.3, "end": 0.97, "speed": 5.0},
    "slow": {"rows": 60, "each": 5, "end": 0.3, "speed": 0.3},
}


def changed(log, key, value):
    """The log with a signal replaced by ``value(row number)``; None leaves it out."""
    for number, row in enumerate(log):
        new = value(number)
        if new is None:
            row.pop(key, None)
        else:
            row[key] = new
    return log


def stuck(seed, **settings):
    """A training that changes nothing."""
    log = grpo_log(seed, start=0.15, end=0.15001, entropy=(0.3, 0.3), kl=0.0, **settings)
    rng = np.random.default_rng(seed)
    for row in log:
        optimal, feasible = row["rewards/optimal/mean"], 0.7 + rng.normal(0, 0.03)
        row["rewards/validity/mean"] = feasible
        row["reward"] = 0.05 + 0.31 * feasible + 0.6 * optimal
        row["kl"] = abs(rng.normal(2e-5, 1e-5))
    return log


def hacked(seed, rows=12, **settings):
    """The published reward: reward up, right answers down."""
    rng = np.random.default_rng(seed)
    log = grpo_log(seed, rows=rows, start=0.15, end=0.03, speed=1.0, **settings)
    changed(log, "reward_std", lambda row: 24 + rng.normal(0, 2))
    return changed(log, "reward", lambda row: 58 + 10 * row / rows + rng.normal(0, 2.5))


def collapsed(seed):
    """Learning rate 1e-3: entropy down to a quarter within 40 steps."""
    rng = np.random.default_rng(seed)
    log = grpo_log(seed, rows=8, end=0.25, speed=1.0)
    return changed(log, "entropy", lambda row: (0.33 - 0.035 * row) * rng.lognormal(0, 0.04))


def formed(seed, key="rewards/validity/mean"):
    """The form improves, the answers do not."""
    rng = np.random.default_rng(seed)
    log = grpo_log(seed, start=0.1, end=0.10001)
    changed(log, "rewards/validity/mean", lambda row: 0.3 + rng.normal(0, 0.03))
    changed(log, key, lambda row: 0.3 + 0.01 * row + rng.normal(0, 0.03))
    return changed(log, "reward", lambda row: 0.3 + 0.002 * row + rng.normal(0, 0.03))


def val_left_behind(seed):
    rng = np.random.default_rng(seed)
    log = grpo_log(seed, rows=100, end=0.7)
    return changed(log, "val/optimal", lambda row: None if row % 10 else 0.2 + rng.normal(0, 0.03))


def truth_lost(seed):
    log = changed(grpo_log(seed), "rewards/optimal/mean", lambda row: 0.3 * 0.98**row)
    changed(log, "reward", lambda row: 0.5 + 0.01 * (row % 3))
    return changed(log, "val/optimal", lambda row: None if row % 10 else 0.3 - row / 300)


def _grpo(key, value, **settings):
    return lambda seed: changed(grpo_log(seed, **settings), key, value)


def _stuck(key, value):
    return lambda seed: changed(stuck(seed), key, value)


def _sft(key, value):
    return lambda seed: changed(sft_log(seed), key, value)


#: By symptom of GRPO, a log that has it, made from a seed.
SICK = {
    "nonfinite": _grpo("grad_norm", lambda row: math.nan if row > 30 else 0.2),
    "untrained": _stuck("grad_norm", lambda row: 0.0),
    "grad-spikes": _grpo("grad_norm", lambda row: 9.0 if row > 45 and row % 4 == 0 else 0.3),
    "kl-flat": stuck,
    "kl-slow": _stuck("kl", lambda row: 1e-5 * row + 2e-4),
    "kl-runaway": _grpo("kl", lambda row: 0.02 * 1.15**row),
    "plateau": stuck,
    "hacking": lambda seed: hacked(seed, rows=24),
    "reward-falls": _grpo("reward", lambda row: 0.4 - 0.006 * min(row, 40)),
    "truth-falls": truth_lost,
    "form-alone": formed,
    "zero-variance": _grpo("frac_reward_zero_std", lambda row: 0.97, start=0.001, end=0.002),
    "entropy-collapse": collapsed,
    "entropy-rises": _grpo("entropy", lambda row: 0.3 * 1.1 ** min(row, 30)),
    "entropy-flat": stuck,
    "truncation": _grpo("completions/clipped_ratio", lambda row: 0.4 + 0.01 * (row % 5)),
    "train-val-gap": val_left_behind,
    "reasoning-drifts": _grpo("reasoning/sound", lambda row: 0.1 * 0.97**row),
    "kl-lost": _grpo("kl", lambda row: math.nan),
    "kl-reference": _grpo("kl", lambda row: 1.05 - 0.001 * row),
    "length-collapse": _stuck("completions/mean_length", lambda row: 8 + 200 * 0.8**row),
    "foreign-answers": lambda seed: changed(
        _grpo("sampling/surplus", lambda row: 0.3)(seed), "sampling/surplus_limit", lambda row: 0.1
    ),
    "sampler-apart": _grpo("sampling/sampling_logp_difference/mean", lambda row: 0.2),
}
SICK_SFT = {
    "loss-zero": _sft("loss", lambda row: 0.0 if row else 1.2),
    "nonfinite": _sft("loss", lambda row: math.inf if row >= 9 else 1.0),
    "untrained": _sft("learning_rate", lambda row: 0.0),
    "grad-spikes": _sft("grad_norm", lambda row: 9.0 if row % 5 == 4 else 0.3),
    "overfitting": _sft("eval_loss", lambda r: None if r % 4 else 0.4 + (r / 40 - 0.3) ** 2),
    "diverged": _sft("loss", lambda row: 0.4 + 0.001 * row**2),
    "loss-stands": lambda seed: sft_log(seed, 60, first=0.5, last=0.4999),
}


def named(log):
    """The log with its truth under the name that the doctor knows."""
    name_truth(log, None, Path("synthetic"))
    return log


def scenarios():
    """By name, trainer, function of a seed that makes a healthy log."""
    for name, settings in HEALTHY.items():
        yield name, "grpo", lambda seed, s=settings: grpo_log(seed, **s)
    for name, settings in FOREIGN.items():
        yield name, "grpo", lambda seed, s=settings: named(foreign(seed, **s))
    for groups in (1, 4, 16):
        for rises in (True, False):
            name = f"noisy, {groups} groups, form {'rises' if rises else 'is there'}"
            yield name, "grpo", lambda seed, g=groups, r=rises: noisy_log(seed, g, r)
    yield "SFT", "sft", sft_log


def now_and_past(log, kind, settings=None):
    """The findings that hold at the end of a log, worst first, and those that held along it."""
    watch = Watch(kind, settings)
    for row in log:
        watch.update(row)
    return watch.now_and_past()


def diagnose(log, kind, settings=None):
    """The findings on a whole log that hold at its end, worst first."""
    return now_and_past(log, kind, settings)[0]


def watched(log, kind):
    """Findings but notes at the end of a log, and all that were raised along it."""
    now, past = now_and_past(log, kind)
    return ([one for one in each if one.level != Level.NOTE] for each in (now, now + past))


def share(count, of):
    low, high = binomtest(count, of).proportion_ci(method="wilson")
    return f"{count / of:6.1%} ({low:.1%} to {high:.1%})"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    seeds = parser.parse_args().seeds
    print(f"{'healthy':36} {'a finding at the end':24} {'on the way':24} ({seeds} seeds each)")
    for name, kind, make in scenarios():
        ends, ways = zip(*(watched(make(seed), kind) for seed in range(seeds)), strict=True)
        said = sorted({f"{one.symptom} ({one.level})" for each in ends for one in each})
        counts = (share(sum(map(bool, each)), seeds) for each in (ends, ways))
        print(
            f"{name:36} {' '.join(f'{count:24}' for count in counts)} {', '.join(said)}", flush=True
        )
    print("sick: how often its symptom is found")
    for kind, sick in (("grpo", SICK), ("sft", SICK_SFT)):
        for name, make in sick.items():
            hits = sum(
                name in {one.symptom for one in diagnose(make(seed), kind)} for seed in range(seeds)
            )
            print(f"{name:36} {hits / seeds:7.1%}", flush=True)


if __name__ == "__main__":
    main()
