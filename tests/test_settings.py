"""The recipe's sections as TRL's and PEFT's config objects, and what is refused before training."""

from dataclasses import replace
from pathlib import Path

import pytest

from data.common.errors import UserError
from data.recipe import Recipe, load_recipe
from data.sections import Arm, RewardSection
from pipeline.train.settings import check_settings, grpo_config, lora_config, sft_config
from rewards.reward import SHAPES, reward_functions, reward_weights

TINY = Path(__file__).parents[1] / "pipeline" / "recipes" / "tiny.yaml"
OUT = Path("out")


def recipe(**sections: object) -> Recipe:
    return replace(load_recipe(TINY), **sections)


def refusal(**sections: object) -> str:
    """What is said of a recipe with these sections, after its file's name."""
    with pytest.raises(UserError) as refused:
        check_settings(recipe(**sections))
    text = str(refused.value)
    assert "\n" not in text
    return text.removeprefix(f"{TINY}: ")


# --- what reaches the trainers -------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"learning_rate": 3e-5, "max_steps": 17, "per_device_train_batch_size": 3},
        {"packing": True, "packing_strategy": "wrapped", "max_length": 512},
        {"neftune_noise_alpha": 5.0, "max_grad_norm": 0.3, "adam_beta2": 0.95},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-6}},
        {"optim": "adafactor", "torch_empty_cache_steps": 4, "save_strategy": "no"},
        {"logging_strategy": "epoch", "save_steps": 14, "greater_is_better": True},
        {"max_length": None, "completion_only_loss": False, "seed": 5},
        {"learning_rate": 1},
    ],
)
def test_what_the_recipe_says_of_sft_reaches_trl_unchanged(given):
    config = sft_config(recipe(sft=given), OUT)
    assert type(config).__name__ == "SFTConfig"
    assert {key: getattr(config, key) for key in given} == given


@pytest.mark.parametrize(
    "given",
    [
        {"num_generations": 4, "max_completion_length": 77, "temperature": 0.8, "top_k": 20},
        {"beta": 0.04, "epsilon": 0.1, "epsilon_high": 0.28, "num_iterations": 2},
        {"loss_type": "dr_grpo", "scale_rewards": "none", "mask_truncated_completions": True},
        {"importance_sampling_level": "sequence", "top_entropy_quantile": 0.2},
        {"generation_batch_size": 256, "sync_ref_model": True, "ref_model_mixup_alpha": 0.5},
        {"steps_per_generation": 2, "shuffle_dataset": False, "log_completions": True},
        {"chat_template_kwargs": {"enable_thinking": False}, "min_p": 0.1},
    ],
)
def test_what_the_recipe_says_of_grpo_reaches_trl_unchanged(given):
    base = {"per_device_train_batch_size": 128, "num_generations": 16}
    config = grpo_config(recipe(grpo={**base, **given}), OUT)
    assert type(config).__name__ == "GRPOConfig"
    assert {key: getattr(config, key) for key in given} == given


def test_true_and_false_may_stand_where_trl_reads_them_as_words():
    config = grpo_config(recipe(grpo={"num_generations": 4, "scale_rewards": False}), OUT)
    assert config.scale_rewards == "none"


def test_a_learning_rate_in_a_file_may_be_written_with_an_exponent(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(f"extends: {TINY}\nsft: {{learning_rate: 2e-5}}\n")
    assert sft_config(load_recipe(path), OUT).learning_rate == 2e-5


def test_seed_and_folder_are_the_runs():
    for config in (sft_config(recipe(seed=11), OUT), grpo_config(recipe(seed=11), OUT)):
        assert (config.seed, config.output_dir) == (11, "out")


def test_what_a_recipe_leaves_out_does_not_depend_on_the_machine_or_on_trls_version():
    needed = {"per_device_train_batch_size": 8, "num_generations": 4}
    for config in (sft_config(recipe(sft={}), OUT), grpo_config(recipe(grpo=needed), OUT)):
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


def test_a_curriculum_from_easy_to_hard_is_not_shuffled_by_the_trainers():
    data = load_recipe(TINY).data
    for curriculum, mixed in (("mixture", True), ("easy_to_hard", False)):
        given = recipe(data=replace(data, curriculum=curriculum))
        assert grpo_config(given, OUT).shuffle_dataset is mixed
        assert (sft_config(given, OUT).train_sampling_strategy == "random") is mixed


def test_lora_reaches_peft_unchanged_and_null_means_none():
    given = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "use_rslora": True, "bias": "all"}
    config = lora_config(recipe(lora={**given, "target_modules": ["q_proj", "v_proj"]}))
    assert type(config).__name__ == "LoraConfig"
    assert {key: getattr(config, key) for key in given} == given
    assert set(config.target_modules) == {"q_proj", "v_proj"}
    assert config.task_type == "CAUSAL_LM"
    assert lora_config(recipe(lora=None)) is None
    assert lora_config(recipe(lora={})).task_type == "CAUSAL_LM"


# --- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "key", "says"),
    [
        (
            "sft",
            "learnig_rate",
            "unknown key 'sft.learnig_rate' (the keys are those of trl's SFTConfig); "
            "did you mean 'learning_rate'?",
        ),
        (
            "grpo",
            "num_generation",
            "unknown key 'grpo.num_generation' (the keys are those of trl's GRPOConfig); "
            "did you mean 'num_generations'?",
        ),
        (
            "grpo",
            "max_prompt_length",  # which older versions of TRL had
            "unknown key 'grpo.max_prompt_length' (the keys are those of trl's GRPOConfig); "
            "did you mean 'max_completion_length'?",
        ),
        (
            "lora",
            "lora_alfa",
            "unknown key 'lora.lora_alfa' (the keys are those of peft's LoraConfig); "
            "did you mean 'lora_alpha'?",
        ),
        (
            "lora",
            "zzz",
            "unknown key 'lora.zzz' (the keys are those of peft's LoraConfig)",
        ),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_right_one(section, key, says):
    assert refusal(**{section: {key: 1}}) == says


@pytest.mark.parametrize("section", ["sft", "grpo"])
@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("output_dir", "the run's folder is the output"),
        ("model_init_kwargs", "give model: and dtype: at the top"),
        ("reward_weights", "give weights under reward:"),
    ],
)
def test_what_the_pipeline_decides_itself_cannot_be_set(section, key, says):
    assert refusal(**{section: {key: None}}) == f"{section}.{key} cannot be set; {says}"


@pytest.mark.parametrize(
    ("section", "key", "value", "must_be"),
    [
        ("sft", "max_steps", "many", "a whole number"),
        ("sft", "max_steps", 1.5, "a whole number"),
        ("sft", "learning_rate", "1e-3x", "a number"),
        ("sft", "learning_rate", True, "a number"),
        ("sft", "packing", "yes", "true or false"),
        ("sft", "max_length", "long", "a whole number or null"),
        ("sft", "lr_scheduler_kwargs", 3, "text or true or false or a mapping of keys or null"),
        ("grpo", "beta", "0.1", "a number"),
        ("grpo", "num_generations", "x", "a whole number or null"),
        ("grpo", "mask_truncated_completions", 1, "true or false"),
        ("grpo", "scale_rewards", 2, "text or true or false"),
        ("lora", "r", "8", "a whole number"),
        ("lora", "runtime_config", {}, "left out"),
        ("lora", "target_modules", 5, "text or true or false or a list or null"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_before_training(section, key, value, must_be):
    assert refusal(**{section: {key: value}}) == f"{section}.{key} must be {must_be}, not {value!r}"


@pytest.mark.parametrize(
    ("section", "given", "says"),
    [
        (
            "grpo",
            {"per_device_train_batch_size": 128, "num_generations": 7},
            "GRPOConfig refuses grpo: generation_batch_size (128) must be divisible by "
            "num_generations (7)",
        ),
        (
            "grpo",
            {"num_generations": 1},
            "GRPOConfig refuses grpo: GRPO requires at least 2 generations",
        ),
        ("sft", {"optim": "nope"}, "SFTConfig refuses sft: nope is not a valid OptimizerNames"),
        ("sft", {"save_strategy": "nope"}, "SFTConfig refuses sft: nope is not a valid Save"),
        ("lora", {"task_type": "NOPE"}, "LoraConfig refuses lora: Invalid task type: 'NOPE'"),
    ],
)
def test_a_refusal_of_the_trainers_own_is_one_sentence_with_the_section(section, given, says):
    assert refusal(**{section: given}).startswith(says)


LINEAR = {"lr_scheduler_type": "linear"}
MIN_LR = {"lr_scheduler_type": "cosine_with_min_lr"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (MIN_LR, "One of min_lr or min_lr_rate should be set through the `lr_scheduler_kwargs`"),
        (
            {**LINEAR, "lr_scheduler_kwargs": {"foo": 1}},
            "_warmup() got an unexpected",
        ),
        ({**LINEAR, "lr_scheduler_kwargs": {"last_epoch": 3}}, "'initial_lr' is not specified"),
        ({**MIN_LR, "lr_scheduler_kwargs": {"min_lr": "low"}}, "unsupported operand type"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": "x"}}, "could not"),
        ({"learning_rate": -1e-4}, "Invalid learning rate: -0.0001"),
        ({"learning_rate": -1e-4, "optim": "lomo"}, "Invalid learning rate: -0.0001"),
        ({"adam_beta1": 1.5}, "Invalid beta parameter at index 0: 1.5"),
        ({"optim": "sgd", "optim_args": "momentum=much"}, "could not convert string to float"),
    ],
)
@pytest.mark.parametrize("section", ["sft", "grpo"])
def test_an_optimizer_or_schedule_that_cannot_be_made_is_refused_before_training(
    section, given, says
):
    said = refusal(**{section: {**getattr(recipe(), section), **given}})
    assert said.startswith(f"{section.upper()}Config refuses {section}: ")
    assert says in said


@pytest.mark.parametrize(
    "given",
    [
        {**MIN_LR, "lr_scheduler_kwargs": {"min_lr_rate": 0.1}, "warmup_steps": 0.1},
        {
            "lr_scheduler_type": "warmup_stable_decay",
            "lr_scheduler_kwargs": {"num_decay_steps": 500},
            "max_steps": 3,
        },
        {"lr_scheduler_type": "constant", "optim": "adafactor", "max_steps": -1},
        {"optim": "sgd", "optim_args": "momentum=0.9,nesterov=true"},
        {"optim": "adamw_8bit"},
        {"optim": "galore_adamw"},
        {"eval_strategy": "no"},
    ],
)
def test_an_optimizer_and_a_schedule_that_can_be_made_are_taken(given):
    check_settings(
        recipe(**{name: {**getattr(recipe(), name), **given} for name in ("sft", "grpo")})
    )


@pytest.mark.parametrize("section", ["sft", "grpo"])
@pytest.mark.parametrize(
    "given",
    [
        {"eval_strategy": "steps", "eval_steps": 7, "per_device_eval_batch_size": 16},
        {"eval_on_start": True},
    ],
)
def test_a_measurement_on_a_set_that_there_is_not_is_refused(section, given):
    said = refusal(**{section: {**getattr(recipe(), section), **given}})
    assert said == (
        f"{section}.{next(iter(given))} cannot be set; the trainers have no eval set, and "
        "monitor: {every: ...} measures on val"
    )


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"max_steps": 0}, "max_steps"),
        ({"max_steps": -1, "num_train_epochs": 0}, "num_train_epochs"),
    ],
)
def test_a_training_of_no_step_is_refused(given, key):
    said = refusal(sft={**recipe().sft, **given})
    assert said == f"sft.{key} must be above 0, or nothing is trained"


@pytest.mark.parametrize(
    ("shape", "weights", "says"),
    [
        ("grades", None, "unknown reward.shape 'grades' (the shapes are "),
        ("graded", {"optimum": 1.0}, "unknown key 'reward.weights.optimum'"),
        ("graded", {}, "reward.weights needs a component with a weight above 0"),
        ("binary", {"optimal": 1.0}, "reward.weights belong to the shape 'graded', not to"),
    ],
)
def test_a_reward_that_cannot_be_what_it_says_is_refused_before_training(shape, weights, says):
    section = RewardSection(shape, weights)
    assert refusal(reward=section).startswith(says)
    arms = {"mine": Arm("grpo", reward=section)}
    assert refusal(arms=arms).startswith(says)


def test_every_arms_settings_are_checked_before_the_first_is_trained():
    arms = {"first": Arm("sft"), "later": Arm("grpo", settings={"num_generation": 4})}
    assert refusal(arms=arms).startswith("unknown key 'grpo.num_generation'")
    arms["later"] = Arm("sft", seeds=(1,), settings={"max_steps": "many"})
    assert refusal(arms=arms) == "sft.max_steps must be a whole number, not 'many'"


def test_an_arms_settings_and_seed_reach_trl():
    arms = {"mine": Arm("grpo", seeds=(5,), settings={"learning_rate": 1e-3})}
    mine = grpo_config(recipe(arms=arms).for_arm("mine.5"), OUT)
    assert (mine.learning_rate, mine.seed) == (1e-3, 5)
    assert mine.max_steps == grpo_config(recipe(), OUT).max_steps


def test_an_unknown_dtype_is_refused_before_anything_runs():
    with pytest.raises(UserError, match="dtype must be one of float32, bfloat16, float16, not"):
        check_settings(recipe(dtype="float31"))
