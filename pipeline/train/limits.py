"""Values of trainer settings that the libraries would take, and then fail on or train nonsense.

TRL, transformers and PEFT check few of their own arguments. A recipe's are checked here as ``make
data`` begins, each refusal naming the key and the way out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from data.common.errors import brief, require
from data.common.fields import Limit, at_least, check_keys, one_of
from data.sections import SEEDS
from pipeline.train.vllm import SAMPLING_PARAMS

#: Free arguments of a library's class.
Arguments = Mapping[str, Any]


def no_gpu() -> bool:
    import torch

    return not torch.cuda.is_available()


#: Arguments that the pipeline sets itself, and those of older versions, with the way out.
_WAYS_OUT = (
    ("output_dir", "the run's folder is the output"),
    ("reward_weights", "give weights under reward:"),
    ("multi_objective_aggregation", "a component that does not apply must count 0, not as average"),
    ("model_init_kwargs", "give model: and dtype: at the top"),
    ("save_only_model", "a training that is interrupted could not go on"),
    ("resume_from_checkpoint", "the same command goes on from the last checkpoint by itself"),
    ("assistant_only_loss", "completion_only_loss, the default, is the same here"),
    ("dataset_kwargs", "the texts are the recipe's data, by the model's template"),
    ("eval_strategy evaluation_strategy eval_on_start load_best_model_at_end",
     "the trainers have no eval set, and monitor: {every: ...} measures on val"),
    ("push_to_hub hub_token hub_model_id hub_strategy hub_private_repo hub_always_push "
     "hub_revision push_to_hub_token log_completions_hub_repo",
     "training needs no network; `make export` writes a folder to upload"),
    ("deepspeed fsdp fsdp_config parallelism_config accelerator_config ddp_backend local_rank",
     "LAUNCH=pipeline/accelerate/FILE.yaml says how processes share the work"),
    ("eos_token pad_token", "the model's tokenizer and template say them"),
    ("restore_callback_states_from_checkpoint",
     "what a training goes on with is restored anyway"),
    ("ignore_data_skip",
     "a training that was interrupted goes on with the problems that are left"),
    ("max_prompt_length", "prompts are never cut: max_seq_length at the top bounds a prompt with "
     "its answer, max_completion_length an answer"),
    ("max_seq_length", "it belongs at the top of the recipe"),
    ("warmup_ratio", "warmup_steps below 1 is a share of the steps"),
    ("group_by_length", "train_sampling_strategy: group_by_length does it"),
    ("chat_template_path", "answers are sampled by the model's own template"),
    ("use_transformers_paged use_transformers_continuous_batching",
     "answers are drawn by our own sampler, or by vLLM (use_vllm)"),
)  # fmt: skip
NOT_SET = {key: way_out for keys, way_out in _WAYS_OUT for key in keys.split()}


def _is_pattern(names: Any) -> bool:
    try:
        re.compile(names if isinstance(names, str) else "")
    except re.error:
        return False
    return True


def _are_above_0(numbers: Arguments) -> bool:
    return all(type(one) in (int, float) and one > 0 for one in numbers.values())


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)


def _left_out(value: Any) -> bool:
    return not value


#: Values that the libraries would take, and then fail on or train nonsense; by keys, after a
#: section where that decides.
_LIMITED = (
    ("per_device_train_batch_size per_device_eval_batch_size pad_to_multiple_of "
     "gradient_accumulation_steps steps_per_generation generation_batch_size num_iterations "
     "num_generations_eval max_completion_length max_new_tokens max_length ref_model_sync_steps "
     "save_total_limit dataset_num_proc dataloader_prefetch_factor ddp_timeout ddp_bucket_cap_mb "
     "vllm_tensor_parallel_size vllm_max_model_length qalora_group_size max_tokens", at_least(1)),
    ("num_generations", at_least(2)),
    ("r", Limit(lambda rank: 0 < rank <= 8192, "1 to 8192")),
    ("max_grad_norm neftune_noise_alpha warmup_steps beta epsilon_high entropy_target top_k "
     "off_policy_mask_threshold num_completions_to_print dataloader_num_workers "
     "router_aux_loss_coef min_tokens", at_least(0)),
    ("temperature repetition_penalty logging_steps save_steps sapo_temperature_neg "
     "sapo_temperature_pos vespo_k_pos vespo_k_neg vespo_lambda_pos vespo_lambda_neg "
     "vllm_server_timeout lora_alpha", Limit(lambda value: value > 0, "above 0")),
    ("delta", Limit(lambda value: value > 1, "above 1, or no token would be learned from")),
    ("vllm_importance_sampling_clip_max vllm_importance_sampling_cap",
     Limit(lambda value: value >= 1, "1 or more, the weight of a sample of the model itself")),
    ("min_p ref_model_mixup_alpha weight_decay epsilon entropy_coef entropy_coef_min "
     "entropy_coef_max entropy_coef_delta vllm_importance_sampling_clip_min",
     Limit(lambda value: 0 <= value <= 1, "a share, 0 to 1")),
    ("learning_rate adam_epsilon top_p top_entropy_quantile vllm_gpu_memory_utilization",
     Limit(lambda value: 0 < value <= 1, "above 0 and at most 1")),
    ("lora_dropout adam_beta1 adam_beta2", Limit(lambda value: 0 <= value < 1, "0 to below 1")),
    ("vllm_server_port vllm_group_port",
     Limit(lambda value: 0 < value < 65536, "a port, 1 to 65535")),
    ("seed data_seed", SEEDS),
    ("label_smoothing_factor", Limit(lambda value: value == 0, "0, since TRL's losses have none")),
    ("activation_offloading",
     Limit(lambda value: not value or not no_gpu(), "false where there is no GPU")),
    ("grpo.remove_unused_columns",
     Limit(_left_out, "false, since the reward reads the column of problems")),
    ("grpo.loss_type",
     one_of("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")),
    ("sft.loss_type", one_of("nll", "chunked_nll", "dft")),
    ("importance_sampling_level", one_of("token", "sequence")),
    ("scale_rewards", one_of("group", "batch", "none", True, False)),
    ("vllm_mode", one_of("colocate", "server")),
    ("vllm_model_impl", one_of("vllm", "transformers")),
    ("vllm_importance_sampling_mode",
     one_of("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")),
    ("truncation_mode", one_of("keep_start", "keep_end")),
    ("packing_strategy", Limit(lambda value: value in ("bfd", "bfd_split"),
                               "bfd or bfd_split, which cut no example")),
    ("save_strategy", one_of("steps", "epoch", "no")),
    ("train_sampling_strategy", one_of("random", "sequential", "group_by_length")),
    ("torch_compile_mode", one_of("default", "reduce-overhead", "max-autotune")),
    ("dataloader_multiprocessing_context", one_of("fork", "spawn", "forkserver")),
    ("log_level log_level_replica",
     one_of("debug", "info", "warning", "error", "critical", "passive")),
    ("include_num_input_tokens_seen", one_of("all", "non_padding", "no", True, False)),
    ("num_beams num_return_sequences n", one_of(1)),
    ("stop_token_ids", Limit(_are_ids, "a list of token ids")),
    ("do_sample", one_of(True)),
    ("torch_compile_backend", one_of("inductor", "eager", "aot_eager", "cudagraphs")),
    ("gradient_checkpointing_kwargs",
     Limit({"use_reentrant", "preserve_rng_state"}.issuperset,
           "of use_reentrant and preserve_rng_state")),
    ("chat_template_kwargs",
     Limit(lambda value: not value, "null, for it would act on the prompts of GRPO alone; begin "
           "chat_template.jinja in a copy of the model with {% set enable_thinking = false %}")),
    ("target_modules exclude_modules vllm_structured_outputs_regex",
     Limit(_is_pattern, "a name or a regular expression")),
    ("rank_pattern alpha_pattern", Limit(_are_above_0, "numbers above 0")),
    ("peft_type", one_of("LORA")),
    ("task_type", one_of("CAUSAL_LM")),
    ("bias", one_of("none", "all", "lora_only")),
    ("alora_invocation_tokens layer_replication lora_bias trainable_token_indices megatron_config "
     "velora_config use_qalora",
     Limit(_left_out, "left out, since it cannot be merged into a model")),
    ("inference_mode", Limit(_left_out, "false, or nothing is trained")),
    ("init_lora_weights",  # merging the others gives another model than was trained
     one_of(True, False, "gaussian", "orthogonal", "olora", "pissa", "mica")),
)  # fmt: skip
_LIMITS = {key: limit for keys, limit in _LIMITED for key in keys.split()}
#: Where TRL's annotation allows null and its trainer does not.
_NOT_NULL = ("num_generations", "max_completion_length")
#: Arguments that are of no use, or fail, without another one.
_NEEDS = {
    "packing": "max_length",
    "dataloader_persistent_workers": "dataloader_num_workers",
    "sync_ref_model": "beta",
}


def check_value(where: str, section: str, key: str, value: Any) -> None:
    """Raise UserError where a value, or one inside it, is beyond its limit or no finite number."""
    if isinstance(value, dict):
        for inner, one in value.items():
            check_value(f"{where}.{inner}", section, str(inner), one)
    for one in value if isinstance(value, list) else [value]:
        require(
            not isinstance(one, int | float) or abs(one) < 1 << 63,  # nan is not
            f"{where} must be a finite number, not {brief(one)}",
        )
    limit = _LIMITS.get(f"{section}.{key}") or _LIMITS.get(key)
    if limit and (value is not None or key in _NOT_NULL):
        require(
            value is not None and limit.holds(value),
            f"{where} must be {limit.words}, not {brief(value)}",
        )


def check_together(source: str, section: str, given: Arguments) -> None:
    """Raise UserError where an argument lacks one that it needs, or clashes with one, or where
    sampling does not know a setting."""
    for key, other in _NEEDS.items():
        require(
            not given.get(key) or given.get(other),
            f"{source}: {section}.{key} needs {section}.{other}",
        )
    get = given.get
    by_token = str(get("vllm_importance_sampling_mode")).startswith("token_")
    corrected = get("use_vllm") and get("vllm_importance_sampling_correction", True)
    clashes = {
        "loss_type: vespo with use_vllm needs vllm_importance_sampling_mode: token_mask or "
        "token_truncate": get("loss_type") == "vespo" and corrected and not by_token,
        "loss_type: chunked_nll goes without use_liger_kernel, which needs nll": (
            get("loss_type") == "chunked_nll" and get("use_liger_kernel")
        ),
        "padding_free needs packing, or max_length: null": (
            get("padding_free") and get("max_length") and not get("packing")
        ),
        "entropy_coef_min must not be above entropy_coef_max": (
            get("entropy_coef_min", 0) > get("entropy_coef_max", 1)
        ),
    }
    for rule, clash in clashes.items():
        require(not clash, f"{source}: {section}.{rule}")
    words = get("generation_kwargs") or {}
    if isinstance(words, dict):
        from transformers import GenerationConfig

        where, drawn_by_vllm = f"{section}.generation_kwargs.", get("use_vllm")
        known = SAMPLING_PARAMS if drawn_by_vllm else vars(GenerationConfig())
        check_keys(words, known, source, where)
        if not drawn_by_vllm:
            GenerationConfig(**words, cache_implementation=get("cache_implementation"))
