"""The arithmetic of memory: against what torch, peft, transformers and trl hold, and by its laws.

No GPU is needed: autograd saves the same tensors on a CPU.
"""

from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache
from trl import GRPOConfig, GRPOTrainer

from pipeline.memory.advice import WORTH, savings
from pipeline.memory.arithmetic import (
    GIB,
    Linear,
    ModelShape,
    Settings,
    kv_bytes,
    layer_bytes,
    logit_bytes,
    lora_parameters,
    optimizer_bytes,
    reference_bytes,
    trained,
    weight_bytes,
)
from pipeline.memory.stages import CONTEXT, PARTS, estimate
from pipeline.model.skeleton import shape_of, skeleton

SMALL = dict(
    vocab_size=128, hidden_size=128, intermediate_size=352, num_attention_heads=4,
    num_key_value_heads=2, num_hidden_layers=3,
)  # fmt: skip
FAMILIES = {
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "llama": {},
    "smollm3": {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "gemma3_text": {"head_dim": 32, "layer_types": ["full_attention"] * 3},
}
H, MLP, KV = 3584, 18944, 512
#: Qwen2.5-7B.
LARGE = ModelShape(
    name="7b",
    parameters=7_615_616_512,
    linears=(
        Linear("q_proj", H, H, 28),
        Linear("k_proj", H, KV, 28),
        Linear("v_proj", H, KV, 28),
        Linear("o_proj", H, H, 28),
        Linear("gate_proj", H, MLP, 28),
        Linear("up_proj", H, MLP, 28),
        Linear("down_proj", MLP, H, 28),
    ),
    vocabulary=152_064,
    hidden=H,
    layers=28,
    windows=(None,) * 28,
    heads=28,
    query=H,
    key=KV,
    mlp=MLP,
    gated=True,
    norms=2 * H,
)


def small_config(family: str, **sizes):
    return AutoConfig.for_model(family, **{**SMALL, **FAMILIES[family], **sizes})


def small(family: str = "qwen2", **sizes) -> ModelShape:
    return shape_of(skeleton(small_config(family, **sizes)))


def training(shape: ModelShape, stage: str = "grpo", **more) -> Settings:
    grpo = {"loss": "full", "generated": 64} if stage == "grpo" else {}
    given = dict(
        arm=stage, stage=stage, backend="trl", bits=16, prompt=400, completion=600, rows=16,
        adapters=shape.linears, rank=32, group=8, gold=300,
    )  # fmt: skip
    return Settings(**{**given, **grpo, **more})


def parts(shape: ModelShape, settings: Settings, phase: str) -> dict[str, int]:
    return next(p.parts for p in estimate(shape, settings).phases if p.name == phase)


# --- against the libraries -------------------------------------------------------------------


def saved_by_a_layer(family: str, dtype: torch.dtype, lora: LoraConfig | None = None) -> float:
    """Bytes that autograd saves for one layer: two models that differ by two layers, compared."""

    def saved(layers: int) -> int:
        sizes: dict[str, object] = {"num_hidden_layers": layers}
        if "layer_types" in FAMILIES[family]:
            sizes["layer_types"] = ["full_attention"] * layers
        network = AutoModelForCausalLM.from_config(small_config(family, **sizes), dtype=dtype)
        network = get_peft_model(network, lora) if lora else network
        network.train()
        weights = {t.untyped_storage().data_ptr() for t in network.parameters()}
        kept: dict[int, tuple[int, torch.Tensor]] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        inner = network.base_model.model.model if lora else network.model
        mask = torch.ones(2, 64, dtype=torch.long)
        mask[0, :16] = 0
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            ids = torch.randint(0, 100, (2, 64))
            inner(input_ids=ids, attention_mask=mask, use_cache=False)
        return sum(size for size, _ in kept.values())

    return (saved(3) - saved(1)) / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_layers_activations_are_what_autograd_saves(family, dtype):
    shape, bits = small(family), 8 * dtype.itemsize
    s = training(shape, "sft", bits=bits, rows=2, prompt=24, completion=40, adapters=())
    assert layer_bytes(shape, s) == pytest.approx(saved_by_a_layer(family, dtype), rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["o_proj", "down_proj"]])
def test_with_lora_a_layer_keeps_each_adapters_own_input(targets, dropout, dtype):
    lora = LoraConfig(r=8, target_modules=targets, lora_dropout=dropout, task_type="CAUSAL_LM")
    shape = small()
    adapted = tuple(one for one in shape.linears if targets == "all-linear" or one.name in targets)
    s = training(
        shape, "sft", bits=8 * dtype.itemsize, rows=2, prompt=24, completion=40, rank=8,
        dropout=bool(dropout), adapters=adapted,
    )  # fmt: skip
    real = saved_by_a_layer("qwen2", dtype, lora)
    if dropout:  # its mask has a byte on a GPU, 4 on a CPU
        real -= s.tokens * 3 * sum(one.inputs * one.count for one in adapted) / shape.layers
    assert layer_bytes(shape, s) == pytest.approx(real, rel=0.01)


@pytest.mark.parametrize("tokens", [5, 40])
@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("qwen2", {}),
        ("llama", {"num_key_value_heads": 1}),
        ("gemma3_text", {
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        }),
    ],
)  # fmt: skip
def test_the_kv_cache_is_a_real_ones(family, sizes, tokens):
    config = small_config(family, **sizes)
    network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    cache = DynamicCache(config=config)
    with torch.no_grad():
        network(input_ids=torch.randint(3, 100, (3, tokens)), past_key_values=cache)
    real = sum(t.numel() * t.element_size() for la in cache.layers for t in (la.keys, la.values))
    assert kv_bytes(shape_of(skeleton(config)), 3, tokens, 2) == real


@pytest.mark.slow
def test_adapters_and_the_copy_that_grpo_refers_to_are_pefts_and_trls(tmp_path):
    config = small_config("qwen2", vocab_size=1200)
    network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    network = get_peft_model(network, LoraConfig(r=8, target_modules="all-linear"))
    shape = shape_of(skeleton(config))
    count = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert lora_parameters(shape.linears, 8) == count
    trainer = GRPOTrainer(
        model=network,
        args=GRPOConfig(
            output_dir=str(tmp_path), beta=0.1, num_generations=2, use_cpu=True, bf16=False
        ),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        train_dataset=Dataset.from_list([{"prompt": "07:05"}]),
        processing_class=AutoTokenizer.from_pretrained("pipeline/embedded"),
    )
    assert trainer.ref_model is None
    copied = [p for name, p in trainer.model.named_parameters() if ".ref." in name]
    real = sum(p.numel() * p.element_size() for p in copied)
    assert real == reference_bytes(shape, training(shape, beta=0.1, rank=8)) > 0


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_torchs_adamw_keeps_its_moments_in_the_parameters_dtype(dtype, width):
    weight = torch.nn.Parameter(torch.ones(1000, dtype=dtype))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    moments = [t for t in optimizer.state[weight].values() if t.numel() > 1]
    real = sum(t.numel() * t.element_size() for t in moments)
    assert optimizer_bytes("adamw_torch_fused", 1000, width) == real


# --- by its own laws -------------------------------------------------------------------------


def test_four_bit_weights_are_the_linear_layers_at_4_127_bits_and_the_rest_at_16():
    rest = LARGE.parameters - LARGE.quantisable
    assert weight_bytes(LARGE, 4) == pytest.approx(LARGE.quantisable * 4.127 / 8 + 2 * rest)
    assert weight_bytes(LARGE, 32) == 2 * weight_bytes(LARGE, 16) == 4 * LARGE.parameters
    assert weight_bytes(LARGE, 4) < weight_bytes(LARGE, 8) < weight_bytes(LARGE, 16)
    # 7B in NF4, as published for QLoRA models of this size: 5 to 6 GB.
    assert 5.0 < weight_bytes(LARGE, 4) / 1e9 < 6.0


def test_eight_bit_moments_are_a_byte_and_paged_ones_wait_in_the_hosts_memory():
    assert optimizer_bytes("adamw_8bit", 10**6, 4) == pytest.approx(2e6, rel=0.02)
    assert optimizer_bytes("paged_adamw_8bit", 10**6, 4) == optimizer_bytes("sgd", 10**6, 4) == 0


def test_grpos_logits_are_of_completions_only_and_sfts_of_a_chunk():
    grpo, sft = training(LARGE), training(LARGE, "sft")
    assert logit_bytes(LARGE, grpo) == 16 * 601 * 152_064 * 2 * 2
    assert logit_bytes(LARGE, replace(grpo, prompt=4000)) == logit_bytes(LARGE, grpo)
    assert logit_bytes(LARGE, sft) == logit_bytes(LARGE, replace(sft, rows=64))
    assert logit_bytes(LARGE, replace(sft, loss="full")) == 16_000 * 152_064 * 14
    for stage in (grpo, sft):
        assert logit_bytes(LARGE, replace(stage, backend="unsloth")) <= 2 * GIB


def test_checkpointing_leaves_one_tensor_a_layer_and_offload_two_at_all():
    s = training(LARGE)
    norm, layer = s.tokens * H * 8, s.tokens * H * 2
    checkpointed = replace(s, checkpointing=True)
    held = [
        parts(LARGE, one, "loss")["activations"] - norm
        for one in (s, checkpointed, replace(checkpointed, offload=True))
    ]
    assert held[1:] == [28 * layer, 2 * layer]
    assert held[0] > 10 * held[1]


def test_more_accumulation_keeps_gradients_beside_the_activations():
    s = training(LARGE)
    assert "gradients" not in parts(LARGE, s, "loss")
    twice = parts(LARGE, replace(s, accumulation=2), "loss")
    assert twice["gradients"] == 4 * trained(LARGE, s)


@pytest.mark.parametrize("backend", ["trl", "unsloth"])
def test_vllm_takes_its_share_all_the_time_unless_it_sleeps(backend):
    s = training(LARGE, vllm=0.3, gpu=80.0, generated=0, checkpointing=True, backend=backend)
    share = int(0.3 * 80 * GIB)
    if backend == "unsloth":  # vLLM has the trainer's weights
        share -= weight_bytes(LARGE, 16)
    awake, asleep = estimate(LARGE, s), estimate(LARGE, replace(s, sleeps=True))
    assert all(phase.parts["vLLM"] == share for phase in awake.phases)
    assert [phase.parts.get("vLLM") for phase in asleep.phases].count(share) == 1
    assert not any("KV cache" in phase.parts for phase in awake.phases)


@pytest.mark.parametrize(
    "settings",
    [
        Settings("eval", "sampling", "trl", 16, 400, 600, rows=256, prompts=4),
        training(LARGE),
        training(LARGE, "sft", adapters=(), bits=32, autocast=True),
    ],
)
def test_every_part_has_a_name_of_the_list_and_they_add_up(settings):
    for phase in estimate(LARGE, settings).phases:
        everything = {**phase.parts, **phase.overhead}
        assert set(everything) <= set(PARTS)
        assert all(type(size) is int and size > 0 for size in everything.values())
        assert phase.total == sum(everything.values()) >= phase.allocated + CONTEXT


# --- what to change --------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["trl", "unsloth"])
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_each_change_saves_what_it_says_by_itself_and_keeps_the_step(stage, backend):
    s = training(LARGE, stage, backend=backend, accumulation=4, group=16, beta=0.1)
    for words, changed, saved in savings(LARGE, s):
        after = estimate(LARGE, changed).peak.total
        assert saved == estimate(LARGE, s).peak.total - after >= WORTH, words
        assert changed.rows * changed.accumulation == s.rows * s.accumulation
        assert changed.generated % changed.rows == changed.generated % changed.group == 0
        assert changed.completion >= changed.gold


def test_what_costs_only_time_comes_before_what_changes_the_model_or_the_task():
    keys = [words.partition(":")[0] for words, *_ in savings(LARGE, training(LARGE))]
    order = ["grpo.gradient_checkpointing", "grpo.per_device_train_batch_size", "bits"]
    assert [key for key in keys if key in order] == order
    assert keys[-1] not in order[:2]
