"""The recipe's sections as TRL's and PEFT's config objects, and what is refused before training."""

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
from running import TINY, refusal_of
from transformers import TrainingArguments
from trl import GRPOConfig

from data.recipe import Recipe, load_recipe
from data.sections import Arm, RewardSection, SamplingSection
from pipeline.train.settings import check_settings, grpo_config, lora_config, sft_config
from rewards.reward import SHAPES, reward_functions, reward_weights

OUT = Path("out")


def recipe(**sections: object) -> Recipe:
    return replace(load_recipe(TINY), **sections)


def refusal(**sections: object) -> str:
    """What is said of a recipe with these sections, after its file's name."""
    return refusal_of(lambda: check_settings(recipe(**sections))).removeprefix(f"{TINY}: ")


# --- what reaches the trainers -------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "given"),
    [
        ("sft", {"learning_rate": 3e-5, "max_steps": 17, "per_device_train_batch_size": 3}),
        ("sft", {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1}}),
        ("sft", {"max_length": None, "completion_only_loss": False, "seed": 5}),
        ("grpo", {"beta": 0.04, "epsilon_high": 0.28, "num_iterations": 2, "temperature": 0.8}),
        ("grpo", {"steps_per_generation": 2, "shuffle_dataset": False, "log_completions": True}),
        ("grpo", {"use_vllm": True, "vllm_mode": "server", "vllm_server_port": 8000}),
    ],
)
def test_what_the_recipe_says_reaches_trl_unchanged(section, given):
    base = {"per_device_train_batch_size": 128, "num_generations": 16} if section == "grpo" else {}
    configure = {"sft": sft_config, "grpo": grpo_config}[section]
    config = configure(recipe(**{section: {**base, **given}}), OUT)
    assert type(config).__name__ == f"{section.upper()}Config"
    assert {key: getattr(config, key) for key in given} == given


def test_true_and_false_may_stand_where_trl_reads_them_as_words():
    config = grpo_config(recipe(grpo={"num_generations": 4, "scale_rewards": False}), OUT)
    assert config.scale_rewards == "none"


def test_defaults_do_not_depend_on_the_machine_or_on_trls_version():
    needed = {"per_device_train_batch_size": 8, "num_generations": 4}
    for config in (
        sft_config(recipe(sft={}, seed=11), OUT),
        grpo_config(recipe(grpo=needed, seed=11), OUT),
    ):
        assert (config.seed, config.output_dir) == (11, "out")
        assert (config.bf16, config.report_to, config.lr_scheduler_type) == (False, [], "linear")
        assert config.gradient_checkpointing is False
    grpo = grpo_config(recipe(), OUT)
    assert (grpo.beta, grpo.loss_type, grpo.scale_rewards) == (0.0, "dapo", "group")
    assert sft_config(recipe(), OUT).completion_only_loss is True


@pytest.mark.parametrize("shape", SHAPES)
def test_the_rewards_weights_reach_trl_in_the_order_of_its_functions(shape):
    section = RewardSection(shape)
    config = grpo_config(recipe(reward=section), OUT)
    assert config.reward_weights == reward_weights(section)
    assert len(config.reward_weights) == len(reward_functions(section))


def test_lora_reaches_peft_unchanged_and_null_means_none():
    given = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "use_rslora": True, "bias": "all"}
    config = lora_config({**given, "target_modules": ["q_proj", "v_proj"]}, "r.yaml")
    assert {key: getattr(config, key) for key in given} == given
    assert set(config.target_modules) == {"q_proj", "v_proj"}
    assert config.task_type == "CAUSAL_LM"
    assert lora_config(None, "r.yaml") is None
    assert lora_config({}, "r.yaml").task_type == "CAUSAL_LM"


def test_an_arms_settings_and_seed_reach_trl():
    arms = {"mine": Arm("grpo", seeds=(5,), settings={"learning_rate": 1e-3})}
    mine = grpo_config(recipe(arms=arms).for_arm("mine.5"), OUT)
    assert (mine.learning_rate, mine.seed) == (1e-3, 5)
    assert mine.max_steps == grpo_config(recipe(), OUT).max_steps


# --- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "key", "nearest"),
    [
        ("sft", "learnig_rate", "; did you mean 'learning_rate'?"),
        ("grpo", "num_generation", "; did you mean 'num_generations'?"),
        ("lora", "lora_alfa", "; did you mean 'lora_alpha'?"),
        ("grpo", "hub_tokn", ""),  # cannot be set
        ("lora", "zzz", ""),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_right_one(section, key, nearest):
    assert refusal(**{section: {key: 1}}) == f"unknown key '{section}.{key}'{nearest}"


OURS = (
    "output_dir", "model_init_kwargs", "eval_strategy", "push_to_hub", "hub_token", "deepspeed",
    "max_prompt_length", "warmup_ratio", "resume_from_checkpoint",
)  # fmt: skip


@pytest.mark.parametrize("section", ["sft", "grpo"])
@pytest.mark.parametrize("key", OURS)
def test_what_the_pipeline_decides_itself_cannot_be_set(section, key):
    said = refusal(**{section: {key: "hf_secret"}})
    assert said.startswith(f"{section}.{key} cannot be set; ")
    assert "hf_secret" not in said


CONFIGURE = {
    "sft": lambda given: sft_config(recipe(sft=given), OUT),
    "grpo": lambda given: grpo_config(recipe(grpo=given), OUT),
    "lora": lambda given: lora_config(given, str(TINY)),
}
#: Values that a library would take and then fail on after minutes, or train nonsense by; and ones
#: beside them that are sound.
NONSENSE = {
    "sft": {
        "per_device_train_batch_size": (0, -1), "gradient_accumulation_steps": (0,),
        "learning_rate": (float("inf"), float("nan"), 0, -1e-4, 10**400),
        "max_grad_norm": (-1.0, 10**400), "gradient_checkpointing_kwargs": ({"x": 1},),
        "torch_compile_backend": ("fast",),
        "weight_decay": (-0.1,), "adam_beta1": (1.0, -0.1), "adam_epsilon": (0,), "seed": (-1,),
        "logging_steps": (-1,), "save_steps": (0, -2), "save_strategy": ("best",),
        "label_smoothing_factor": (0.1,), "neftune_noise_alpha": (-1,), "loss_type": ("dapo",),
        "truncation_mode": ("keep_middle",), "packing_strategy": ("wrapped",), "max_length": (0,),
        "train_sampling_strategy": ("shuffled",), "dataset_num_proc": (0,), "packing": (True,),
        "log_level": ("loud",), "dataloader_persistent_workers": (True,),
    },
    "grpo": {
        "num_generations": (0, 1, None), "temperature": (0, -1.0), "top_k": (-1,),
        "top_p": (0, 1.1),
        "min_p": (1.1, -0.1), "repetition_penalty": (0,), "max_completion_length": (0, None),
        "loss_type": ("nll", "DAPO"), "importance_sampling_level": ("word",), "beta": (-0.1,),
        "scale_rewards": ("std",), "epsilon": (-0.2, 2), "delta": (0, 0.5),
        "chat_template_kwargs": ({"enable_thinking": False},), "entropy_coef_min": (1.5,),
        "vllm_importance_sampling_clip_max": (0.5,), "num_iterations": (0,),
        "steps_per_generation": (0,), "top_entropy_quantile": (0, 1.5), "entropy_coef": (-1,),
        "ref_model_mixup_alpha": (2,), "vllm_mode": ("remote",), "vllm_server_port": (0,),
        "vllm_importance_sampling_mode": ("token",), "remove_unused_columns": (True,),
        "use_transformers_paged": (True,), "sync_ref_model": (True,),
        "vllm_gpu_memory_utilization": (1.5,),
        "generation_kwargs": ({"top_k": -1}, {"num_beams": 2}, {"min_p": float("nan")}),
    },
    "lora": {
        "r": (0, -8, 10**9), "rank_pattern": ({"q_proj": 0}, {"q_proj": "a"}, {"q_proj": None}),
        "velora_config": ({"rank": 1},), "lora_alpha": (0,), "lora_dropout": (1.0,),
        "bias": ("some",), "task_type": ("SEQ_CLS",), "inference_mode": (True,),
        "init_lora_weights": ("pissa_niter_4", "loftq"),
        "target_modules": ([3], ".*("), "lora_bias": (True,), "alora_invocation_tokens": ([1],),
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("section", "key"), [(section, key) for section, keys in NONSENSE.items() for key in keys]
)
def test_values_that_would_fail_late_or_train_nonsense_are_refused(section, key):
    for value in NONSENSE[section][key]:
        given = {**(getattr(recipe(), section) or {}), key: value}
        said = refusal_of(lambda given=given: CONFIGURE[section](given))
        assert re.match(rf"{TINY}: {section}\.{key}\b", said)


@pytest.mark.parametrize(
    ("section", "given"),
    [
        ("grpo", {"loss_type": "vespo", "use_vllm": True}),
        ("grpo", {"entropy_coef_min": 0.5, "entropy_coef_max": 0.1}),
        ("sft", {"loss_type": "chunked_nll", "use_liger_kernel": True}),
        ("sft", {"padding_free": True, "max_length": 512}),
    ],
)
def test_values_that_are_sound_alone_and_fail_together_are_refused(section, given):
    one, other = given
    sound = {**getattr(recipe(), section)}
    said = refusal(**{section: {**sound, **given}})
    assert all(key in said for key in given)
    for key in (one, other):
        CONFIGURE[section]({**sound, key: given[key]})


def test_a_reference_that_follows_needs_a_model_that_is_trained_whole():
    given = {**recipe().grpo, "beta": 0.1, "sync_ref_model": True}
    check_settings(recipe(grpo=given))
    assert refusal(grpo=given, lora={"r": 4}).startswith("grpo.sync_ref_model needs lora: null")


def test_activations_are_offloaded_from_a_gpu_alone(monkeypatch):
    given = {**recipe().sft, "activation_offloading": True}
    monkeypatch.setattr("pipeline.train.limits.no_gpu", lambda: True)
    assert refusal(sft=given).startswith("sft.activation_offloading must be false where there is")


@pytest.mark.parametrize(
    ("section", "key", "value", "must_be"),
    [
        ("sft", "max_steps", 1.5, "a whole number"),
        ("sft", "learning_rate", True, "a number"),
        ("sft", "packing", "yes", "true or false"),
        ("sft", "max_length", "long", "a whole number or null"),
        ("sft", "lr_scheduler_kwargs", 3, "a mapping of keys or null"),
        ("grpo", "scale_rewards", 2, "text or true or false"),
        ("lora", "runtime_config", {}, "left out"),
        ("lora", "target_modules", 5, "text or a list or null"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_before_training(section, key, value, must_be):
    assert refusal(**{section: {key: value}}) == f"{section}.{key} must be {must_be}, not {value!r}"


MIN_LR = {"lr_scheduler_type": "cosine_with_min_lr"}
BOTH = ["sft", "grpo"]


@pytest.mark.parametrize(
    ("sections", "given", "says"),
    [
        (["grpo"], {"num_generations": 7}, "num_generations (7)"),
        (["grpo"], {"generation_batch_size": 8, "steps_per_generation": 2}, "at the same time"),
        (["lora"], {"layers_pattern": "h"}, "layers_to_transform"),
        # An optimizer or a schedule that cannot be made.
        (BOTH, {"optim": "nope"}, "nope"),
        (BOTH, {"optim": "sgd", "optim_args": "momentum=much"}, "convert string to float"),
        (BOTH, MIN_LR, "lr_scheduler_kwargs"),
        (BOTH, {**MIN_LR, "lr_scheduler_kwargs": {"min_lr": "low"}}, "operand type"),
        (BOTH, {"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"foo": 1}}, "unexpected"),
    ],
)
def test_a_librarys_own_refusal_is_one_sentence_with_the_section(sections, given, says):
    for section in sections:
        said = refusal(**{section: {**(getattr(recipe(), section) or {}), **given}})
        assert said.lower().startswith(f"{section}config refuses {section}: ")
        assert says in said


@pytest.mark.parametrize(
    "given",
    [
        {**MIN_LR, "lr_scheduler_kwargs": {"min_lr_rate": 0.1}, "warmup_steps": 0.1},
        {"lr_scheduler_type": "constant", "optim": "adafactor", "max_steps": -1},
        {"optim": "adamw_8bit"},
        {"optim": "galore_adamw"},
        {"adam_beta1": 0},  # for which torch takes 0.0 alone
    ],
)
def test_an_optimizer_and_a_schedule_that_can_be_made_are_taken(given):
    sections = {name: {**getattr(recipe(), name), **given} for name in ("sft", "grpo")}
    check_settings(recipe(**sections))


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"max_steps": 0}, "max_steps"),
        ({"max_steps": -1, "num_train_epochs": 0}, "num_train_epochs"),
    ],
)
def test_a_training_of_no_step_is_refused(given, key):
    assert refusal(sft={**recipe().sft, **given}).startswith(f"sft.{key} must be above 0")


def test_a_reward_that_cannot_be_what_it_says_is_refused_before_training():
    section = RewardSection("grades")
    for said in (refusal(reward=section), refusal(arms={"mine": Arm("grpo", reward=section)})):
        assert said.startswith("unknown reward.shape 'grades' (the shapes are ")


@pytest.mark.parametrize(
    ("given", "keys"),
    [
        ({"grpo": {"use_vllm": True}}, "grpo.use_vllm"),
        ({"grpo": {"top_k": 20}}, "grpo.top_k"),
        ({"backend": "unsloth"}, "backend: trl"),
        ({"sampling": {"answers": 127}}, "sampling.answers (127) must be at least 128"),
        ({"grpo": {"max_steps": -1}}, "grpo.max_steps of 10 or more"),
        ({"grpo": {"max_steps": 19, "num_iterations": 2}}, "grpo.max_steps of 20 or more"),
        ({"grpo": {"max_steps": 4, "gradient_accumulation_steps": 2}}, "grpo.max_steps of 5 or"),
    ],
    ids=str,
)
def test_a_sampling_section_that_cannot_act_is_refused_before_training(given, keys):
    sampling = {"redraws": 1, "answers": 1280}
    check_settings(recipe(arms={"mine": Arm("grpo", sampling=sampling)}))
    sampling = {**sampling, **given.get("sampling", {})}
    arm = Arm("grpo", backend=given.get("backend"), settings=given.get("grpo", {}))
    check_settings(recipe(arms={"mine": arm}))
    assert keys in refusal(arms={"mine": replace(arm, sampling=sampling)})


def test_problems_are_not_chosen_by_several_processes(monkeypatch):
    monkeypatch.setattr("pipeline.model.processes.count", lambda: 2)
    said = refusal(sampling=SamplingSection(by_success=True))
    assert "does not draw with training in 2 processes" in said


def test_pay_that_scaling_by_the_group_would_undo_is_refused():
    arm = Arm("grpo", reward=RewardSection("passk"))
    assert refusal(arms={"mine": arm}).startswith("the reward 'passk' needs grpo.scale_rewards: ba")
    for scale in ("batch", "none"):
        check_settings(recipe(arms={"mine": replace(arm, settings={"scale_rewards": scale})}))


def test_every_arms_settings_are_checked_before_the_first_is_trained():
    arms = {"first": Arm("sft"), "later": Arm("grpo", settings={"num_generation": 4})}
    assert refusal(arms=arms).startswith("unknown key 'grpo.num_generation'")
    assert "arms.later" in refusal(arms=arms)
    arms["later"] = Arm("sft", seeds=(1,), settings={"max_steps": "many"})
    assert refusal(arms=arms).startswith("sft.max_steps must be a whole number, not 'many'")
    assert "arms.later" in refusal(arms=arms)


#: GRPO's settings in the published experiment (TRL 0.15.2 with Unsloth 2025.3.19), its own and the
#: defaults of that time; later settings stand at the value that changes nothing.
PUBLISHED = {
    "num_generations": 8, "temperature": 0.9, "top_p": 1.0, "top_k": 0, "min_p": None,
    "repetition_penalty": 1.0, "generation_kwargs": None, "chat_template_kwargs": None,
    "cache_implementation": None, "use_vllm": False, "shuffle_dataset": True, "beta": 0.04,
    "steps_per_generation": 1, "num_iterations": 1, "epsilon": 0.2, "epsilon_high": None,
    "delta": None, "importance_sampling_level": "token", "off_policy_mask_threshold": None,
    "use_bias_correction_kl": False, "sync_ref_model": False, "loss_type": "grpo",
    "scale_rewards": "group", "multi_objective_aggregation": "sum_then_normalize",
    "mask_truncated_completions": False, "top_entropy_quantile": 1.0, "entropy_coef": 0.0,
    "use_adaptive_entropy": False, "disable_dropout": False, "cast_lm_head_to_fp32": False,
    "router_aux_loss_coef": 0.0, "num_train_epochs": 3, "max_steps": -1, "weight_decay": 0.1,
    "adam_beta1": 0.9, "adam_beta2": 0.99, "adam_epsilon": 1e-8, "max_grad_norm": 0.1,
    "optim_args": None, "lr_scheduler_type": "cosine", "lr_scheduler_kwargs": None,
    "gradient_accumulation_steps": 1, "label_smoothing_factor": 0.0, "neftune_noise_alpha": None,
    "train_sampling_strategy": "random",
}  # fmt: skip
#: Settings that depend on the model's size, or act only beside another one that is off above.
ASIDE = (
    "vllm_", "log_", "sapo_", "vespo_", "entropy_", "ref_model_", "use_transformers_",
    "transformers_", "ds3_", "num_completions_", "max_tool_", "model_init_", "trust_remote_",
    "num_generations_eval", "max_completion_length", "pad_to_multiple_of", "generation_batch_size",
    "reward_weights",
)  # fmt: skip


@pytest.mark.parametrize("name", ["blog-7b", "blog-tiny"])
def test_the_published_experiment_keeps_the_settings_of_its_time(name):
    """A setting that TRL adds is unknown here: find what it must be to change nothing."""
    config = grpo_config(load_recipe(TINY.with_name(f"{name}.yaml")), OUT)
    assert {key: getattr(config, key) for key in PUBLISHED} == PUBLISHED
    common = {one.name for one in fields(TrainingArguments)}
    own = {one.name for one in fields(GRPOConfig) if one.name not in common}
    assert {key for key in own - set(PUBLISHED) if not key.startswith(ASIDE)} == set()
