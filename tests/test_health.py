"""What the doctor finds in logs: nothing in healthy ones, its symptom in each sick one."""

import json
import math
import random

import numpy as np
import pytest

from pipeline.health.diagnosis import Watch
from pipeline.health.logs import kind_of
from pipeline.health.signals import GRPO, SFT, SIGNALS
from pipeline.health.symptom import Level
from pipeline.health.symptoms import SYMPTOMS
from tests.synthetic import (
    FOREIGN,
    HEALTHY,
    SICK,
    SICK_SFT,
    changed,
    collapsed,
    diagnose,
    foreign,
    formed,
    grpo_log,
    hacked,
    named,
    noisy_log,
    sft_log,
    stuck,
    truth_lost,
    val_left_behind,
)

SEEDS = range(20)


def raised(log, kind=GRPO):
    """Names of all findings but notes."""
    return {one.symptom for one in diagnose(log, kind) if one.level != Level.NOTE}


def often(symptom, log, kind=GRPO):
    """In how many of 20 logs a symptom is found."""
    return sum(symptom in raised(log(seed), kind) for seed in SEEDS)


# --- healthy ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_grpo_run_raises_nothing(name):
    alarms = [seed for seed in SEEDS if raised(grpo_log(seed, **HEALTHY[name]))]
    assert len(alarms) <= 1, alarms  # over 100 seeds it was none
    assert 1 not in alarms


@pytest.mark.parametrize("name", FOREIGN)
def test_a_healthy_run_on_other_scales_raises_nothing(name):
    assert not [seed for seed in range(10) if raised(named(foreign(seed, **FOREIGN[name])))]


@pytest.mark.parametrize("form_rises", [True, False])
@pytest.mark.parametrize("groups", [1, 16])
def test_a_noisy_healthy_run_raises_nothing_that_lasts(groups, form_rises):
    # Over 100 seeds it was none.
    alarms = [raised(noisy_log(seed, groups, form_rises)) for seed in range(6)]
    assert sum(map(bool, alarms)) <= 1, alarms


def test_a_healthy_sft_run_raises_nothing():
    assert not [seed for seed in range(40) if raised(sft_log(seed), SFT)]
    warm = sft_log(1, first=0.25, last=0.2)  # from a good model
    warm[0]["grad_norm"] = 8.0
    assert not raised(warm, SFT)
    assert not raised(with_norm(sft_log(1), lambda row: 0.0), SFT)  # of a trainer without norms


@pytest.mark.parametrize("noise", [0.1, 0.2])
def test_a_noisy_loss_that_falls_has_not_diverged(noise):
    def log(seed):
        rng = np.random.default_rng(seed)
        return changed(
            sft_log(seed, 200, 1), "loss", lambda r: (1 - r / 800) * rng.lognormal(0, noise)
        )

    assert not often("diverged", log, SFT)


# --- sick ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "symptom", "log"),
    [
        *((GRPO, name, log) for name, log in SICK.items()),
        (GRPO, "form-alone", lambda seed: formed(seed, "rewards/format/mean")),
        *((SFT, name, log) for name, log in SICK_SFT.items()),
    ],
)
def test_a_sick_run_raises_its_symptom(kind, symptom, log):
    assert often(symptom, log, kind) >= 17


def test_every_symptom_but_the_note_has_a_sick_run_and_says_all_that_it_should():
    of = {kind: {one.name for one in SYMPTOMS if kind in one.kinds} for kind in (SFT, GRPO)}
    assert of == {GRPO: {*SICK, "loss-near-zero"}, SFT: set(SICK_SFT)}
    for one in SYMPTOMS:
        assert {name for need in one.needs for name in need.split(" or ")} <= set(SIGNALS)
        assert all(map(str.strip, (one.title, one.cause, *one.advice, one.source)))
        assert set(one.unless) <= {each.name for each in SYMPTOMS} - {one.name}


def with_norm(log, norm):
    return changed(log, "grad_norm", norm)


def once(row):
    """One spike, and single lost gradients."""
    return {10: 40.0, 20: math.nan, 30: math.inf}.get(row, 0.2)


def solved(log):
    return changed(log, "rewards/optimal/mean", lambda row: 0.95)


@pytest.mark.parametrize(
    ("log", "symptoms"),
    [
        (lambda: changed(grpo_log(1), "kl", lambda row: 0.0), ["kl-flat"]),
        (lambda: changed(stuck(1), "kl", lambda row: 0.0), ["kl-flat"]),
        (lambda: with_norm(grpo_log(1), lambda row: 0.0), ["untrained"]),
        # Groups that teach nothing explain it.
        (lambda: with_norm(SICK["zero-variance"](1), lambda row: 0.0), ["untrained"]),
        (lambda: grpo_log(1), ["loss-stands"]),  # of SFT alone
        (lambda: with_norm(grpo_log(1), once), ["grad-spikes", "nonfinite"]),
        # Groups that teach nothing have no norm, and so make no spikes of the others'.
        (lambda: with_norm(grpo_log(1), lambda row: 0.0 if row % 4 else 0.2), [*SICK]),
        (lambda: solved(stuck(1)), ["kl-flat"]),
        (lambda: solved(SICK["kl-slow"](1)), ["kl-slow"]),
        # 60 rows without steps are 60 steps: too few to say that something stands still.
        (lambda: changed(stuck(1), "step", lambda row: None), [*SICK]),
    ],
)
def test_an_explained_or_unmeasured_signal_is_not_a_symptom(log, symptoms):
    assert not raised(log()) & set(symptoms)


def test_an_sft_that_loses_at_once_what_its_start_could_has_diverged():
    log = [{"step": 0, "eval_loss": 0.28}, *sft_log(1, first=1.2, last=0.6)]
    (finding,) = diagnose(log, SFT)
    assert (finding.symptom, finding.level, finding.step) == ("diverged", Level.STOP, 50)


def test_rows_that_teach_nothing_say_nothing_of_a_usual_gradient_norm():
    # With beta above 0 their norm is that of the KL: tiny, but not 0.
    log = with_norm(grpo_log(1), lambda row: 0.0015 if row % 3 else 0.4)
    assert "grad-spikes" in raised(log)
    changed(log, "frac_reward_zero_std", lambda row: 1.0 if row % 3 else 0.0)
    assert "grad-spikes" not in raised(log)


@pytest.mark.parametrize(("most", "level"), [(0.99, Level.STOP), (0.8, Level.WARNING)])
def test_a_model_that_became_another_one_shows_in_an_estimate_that_ends_near_1(most, level):
    log = changed(grpo_log(1), "kl", lambda row: None)
    changed(log, "kl_start", lambda row: min(most, 0.3 * (row + 1)))
    (finding,) = (one for one in diagnose(log, GRPO) if one.symptom == "kl-runaway")
    assert (finding.level, finding.step) == (level, 20)


def test_problems_that_become_harder_are_no_worse_policy_where_val_tells():
    log = truth_lost(1)
    changed(log, "val/optimal", lambda row: None if row % 10 else 0.3 + row / 1000)
    assert "truth-falls" not in raised(log)
    assert "truth-falls" in raised(changed(log, "val/optimal", lambda row: None))


@pytest.mark.parametrize(
    ("kl", "least", "most"),
    [
        (lambda row: 2e-4, 18, 20),
        (lambda row: 5e-5 * min(row + 1, 10), 18, 20),
        (lambda row: 3e-5 * (row + 1), 0, 2),
    ],
)
def test_a_little_kl_is_flat_where_it_no_longer_grows(kl, least, most):
    def log(seed):
        noise = np.random.default_rng(seed)
        return changed(stuck(seed), "kl", lambda row: kl(row) * noise.lognormal(0, 0.1))

    assert least <= often("kl-flat", log) <= most


def test_groups_that_teach_nothing_are_no_reason_to_stop_where_all_is_solved():
    log = changed(grpo_log(1, start=0.97, end=0.98), "frac_reward_zero_std", lambda row: 0.96)
    levels = {one.symptom: one.level for one in diagnose(log, GRPO)}
    assert levels["zero-variance"] == Level.WARNING


def test_a_loss_near_zero_is_explained_by_a_note():
    findings = diagnose(grpo_log(1), GRPO)
    assert [(one.symptom, one.level) for one in findings] == [("loss-near-zero", Level.NOTE)]
    assert not diagnose(changed(grpo_log(1), "loss", lambda row: 0.3), GRPO)


def test_a_lost_number_is_known_by_the_null_that_our_log_writes_where_others_leave_none():
    log = with_norm(grpo_log(1), lambda row: 0.2)
    for row in log[30:]:
        row["grad_norm"] = None
    assert raised(log) == {"nonfinite"}
    log = grpo_log(1)[:5]
    log[4]["loss"] = None
    assert diagnose(log, GRPO)[0].step == log[4]["step"]
    log = [{**row, "grad_norm": None} for row in grpo_log(1)]
    assert not raised([*log, {"step": 300, "loss": None, "eval_loss": 0.3, "learning_rate": None}])


@pytest.mark.parametrize("seed", range(60))
def test_no_two_findings_exclude_each_other_or_advise_the_opposite(seed):
    """Two sick logs of chance, mixed signal by signal."""
    rng = random.Random(seed)
    one, two = (SICK[rng.choice([*SICK])](seed) for _ in range(2))
    taken = rng.sample(sorted(one[0]), len(one[0]) // 2)
    for row, other in zip(one, two, strict=False):
        row.update({key: other[key] for key in taken if key in other and key != "step"})
    findings = diagnose(one, GRPO)
    names = {finding.symptom for finding in findings}
    for finding in findings:
        (symptom,) = (each for each in SYMPTOMS if each.name == finding.symptom)
        assert not names & set(symptom.unless)
    words = [item.lower().split()[:2] for one in findings for item in one.advice.split("; ")]
    ways = {(key.strip(",."), verb) for verb, key in filter(lambda w: len(w) == 2, words)}
    assert not {key for key, verb in ways if verb == "raise"} & {
        key for key, verb in ways if verb == "lower"
    }


def test_the_kl_of_others_may_have_another_unit():
    log = named(foreign(1, kl=30.0))
    assert "kl-runaway" not in raised(log)
    assert "kl-runaway" in raised(changed(log, "reward", lambda row: 0.5 - row / 300))


def test_norms_that_were_never_there_are_lost_only_where_nothing_improves():
    assert "nonfinite" in raised(with_norm(stuck(1), lambda row: math.nan))
    lost = [{**row, "grad_norm": None} for row in stuck(1)]
    assert "nonfinite" in raised(lost)


# --- signals that are missing or hostile -----------------------------------------------------


@pytest.mark.parametrize("name", SIGNALS)
def test_a_missing_signal_silences_symptoms_and_fails_none(name):
    keys = SIGNALS[name]
    for log in (grpo_log(1), stuck(1), hacked(1), collapsed(1)):
        full = raised(log)
        for absent in (
            [{k: v for k, v in row.items() if k not in keys} for row in log],
            [{k: None if k in keys else v for k, v in row.items()} for row in log],
        ):
            watch = Watch(GRPO)
            for row in absent:
                watch.update(row)
            needing = {one.name for one in watch.symptoms if name in one.needs}
            assert name in watch.signals.told or needing <= set(watch.missing)
            names = {one.symptom for one in watch.findings if one.level != Level.NOTE}
            assert not names & needing - {"nonfinite"}
            # Nothing new but what another signal held back.
            assert names <= full | {"plateau", "hacking", "truth-falls", "nonfinite"}


def test_symptoms_say_which_signals_they_lack():
    watch = Watch(GRPO)
    for row in changed(grpo_log(1), "kl", lambda row: None):
        watch.update(row)
    assert watch.missing == {
        **dict.fromkeys(("kl-flat", "kl-slow", "kl-runaway", "kl-reference"), ("KL",)),
        "sampler-apart": ("distance of the sampler or weight of the samples",),
        "foreign-answers": ("surplus of the answers", "limit of the surplus"),
    }
    watch = Watch(GRPO)
    watch.update({"loss": 0.1})
    assert watch.missing["zero-variance"] == ("flat groups or reward spread",)


def test_old_and_own_names_of_signals_are_known():
    old = {"rewards/optimal/mean": "rewards/accuracy_reward"}
    kept = ("reward", "reward_std", *old)
    rows = [{old.get(k, k): row[k] for k in kept} | {"kl_start": 3.0} for row in hacked(3)]
    assert raised(rows) == {"hacking", "kl-runaway"}


HOSTILE = (
    None, True, "NaN", "0.3", [], {}, math.nan, math.inf, -math.inf, 10**400, -(10**400), 1e308,
    -1e308, 0, -1, 5e-324, 2**63,
)  # fmt: skip


@pytest.mark.parametrize("kind", [SFT, GRPO])
@pytest.mark.parametrize("seed", range(8))
def test_no_log_however_spoilt_makes_it_fail(kind, seed):
    rng = random.Random(seed)
    keys = [key for names in SIGNALS.values() for key in names]
    watch = Watch(kind)
    for row in grpo_log(seed, rows=120) if kind == GRPO else sft_log(seed, rows=120):
        for key in rng.sample(keys, 4):
            row[key] = rng.choice(HOSTILE)
        if rng.random() < 0.3:
            row["step"] = rng.choice(HOSTILE)
        for finding in watch.update({} if rng.random() < 0.1 else row):
            json.dumps(vars(finding), allow_nan=False)


# --- the watch -------------------------------------------------------------------------------


def test_a_watch_raises_each_symptom_once_and_again_only_when_it_gets_worse():
    log = changed(grpo_log(1), "frac_reward_zero_std", lambda row: 0.85 if row < 30 else 1.0)
    watch = Watch(GRPO)
    fresh = [(row["step"], one.symptom, one.level) for row in log for one in watch.update(row)]
    assert [each for each in fresh if each[1] == "zero-variance"] == [
        (50, "zero-variance", Level.WARNING),
        (220, "zero-variance", Level.STOP),
    ]
    worst = watch.findings[0]
    assert (worst.symptom, worst.level, worst.step) == ("zero-variance", Level.STOP, 50)
    assert len({one.symptom for one in watch.findings}) == len(watch.findings)


def test_a_training_that_resumed_is_judged_by_its_new_rows():
    bad = changed(grpo_log(1), "frac_reward_zero_std", lambda row: 0.0 if row < 5 else 1.0)
    watch = Watch(GRPO)
    for row in (*bad[:9], *grpo_log(1)[5:]):
        assert not [one for one in watch.update(row) if one.level != Level.NOTE]
    assert watch.signals["reward"].count == 60


def test_measurements_on_val_may_be_rows_of_their_own():
    log = []
    for row in val_left_behind(2):
        val = row.pop("val/optimal", None)
        log += [row] if val is None else [row, {"step": row["step"], "val/optimal": val}]
    assert raised(log) == raised(val_left_behind(2)) == {"train-val-gap"}


def test_a_long_log_is_judged_in_strides_but_a_lost_number_at_once():
    log = grpo_log(1, rows=2100, each=1)
    log[2050]["loss"] = math.inf
    changed(log, "completions/clipped_ratio", lambda row: 0.0 if row < 2005 else 0.9)
    watch = Watch(GRPO)
    steps = {one.symptom: one.step for row in log for one in watch.update(row)}
    assert steps["nonfinite"] == 2051
    assert 2005 < steps["truncation"] <= 2032


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"loss": 0.1, "reward": 0.3}, GRPO),
        ({"completions/mean_length": 12.0}, GRPO),
        ({"loss": 0.1, "mean_token_accuracy": 0.8}, SFT),
        ({"eval_loss": 0.1}, None),
        ({"loss": 0.1, "rewards/chosen": 0.2, "rewards/margins": 0.1}, None),
        ({"train_runtime": 3.0, "train_loss": 0.2}, None),
        ({}, None),
    ],
)
def test_the_keys_of_a_row_tell_its_trainer(row, kind):
    assert kind_of(row) == kind
