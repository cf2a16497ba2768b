"""GRPO's step reads a prompt once for its group, and learns the same as TRL's own."""

from copy import deepcopy
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny import ARCHITECTURES, LORA, random_model
from trl import GRPOConfig, GRPOTrainer

from data.prompts import messages
from pipeline.model.exact import InFloat32
from pipeline.model.sampler import reads_once
from pipeline.train.prompt_once import (
    PromptOnceTrainer,
    UnpaddedTrainer,
    by_prompt,
    score_answers,
    trainer_class,
)
from pipeline.train.rollouts import rollouts_for
from pipeline.train.settings import TARGETS

ARGS = SimpleNamespace(gradient_checkpointing=False, use_liger_kernel=False)
ANSWER, TEMPERATURE = 9, 0.7


def batch(words):
    """Two prompts of unlike length, twenty answers of unlike length to each, in mixed order."""
    draw = torch.Generator().manual_seed(5)
    asked = torch.randint(5, words, (2, 12), generator=draw)
    ids = torch.cat([asked.repeat(20, 1), torch.randint(5, words, (40, ANSWER), generator=draw)], 1)
    mask = torch.ones_like(ids)
    mask[::2, :4] = 0
    ids[::2, :4] = 0
    for row in range(1, 40):
        mask[row, 12 + 1 + row % ANSWER :] = 0
    return ids, mask


OURS, TRLS = PromptOnceTrainer._get_per_token_logps_and_entropies, GRPOTrainer._full_logits_logps


def learned(score, model):
    """What a trainer's ``score`` finds for the batch, and the gradient of a sum over it."""
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(unwrap_model=lambda m: m, autocast=torch.enable_grad),
        model_kwarg_keys={"logits_to_keep"},
        temperature=TEMPERATURE,
        _entropy_bonus_enabled=True,
    )
    ids, mask = batch(model.config.vocab_size)
    model.zero_grad()
    found = score(trainer, model, ids, mask, ANSWER, compute_entropy=True)
    real = mask[:, -ANSWER:]
    weight = torch.linspace(-1, 1, ANSWER) * real
    (found[0] * weight + 0.1 * found[1] * weight).sum().backward()
    gradient = [p.grad for p in model.parameters() if p.grad is not None]
    return found[0] * real, found[1] * real, torch.cat([g.flatten() for g in gradient])


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - {"gemma3_text"}))
def test_probabilities_entropies_and_gradients_are_those_of_trl(architecture, adapted):
    model, _ = random_model(architecture)
    if adapted:
        targets = "all-linear" if architecture == "phi3" else list(TARGETS["all"])
        model = get_peft_model(model, LoraConfig(**{**LORA, "target_modules": targets}))
    model.train()
    assert trainer_class(model, ARGS) is PromptOnceTrainer
    for mine, theirs in zip(learned(OURS, model), learned(TRLS, model), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_that_bfloat16_rounds_does_not_keep_a_model_from_reading_prompts_once():
    model, _ = random_model("llama")
    model.lm_head.weight.data *= 400
    model.bfloat16().eval()
    plain, dtypes, exact = model.forward, [], deepcopy(model).float()

    def noisy(*args, **kwargs):
        """Rounds as twenty layers more would."""
        found = plain(*args, **kwargs)
        dtypes.append(found.logits.dtype)
        if found.logits.dtype == torch.bfloat16:
            found.logits = found.logits + 0.2 * found.logits.abs().max() * torch.randn(())
        return found

    texts = batch(model.config.vocab_size)[0][1::2]
    with torch.no_grad():
        assert (model(texts).logits - exact(texts).logits).abs().max() > 1
        with InFloat32():
            torch.testing.assert_close(model(texts).logits, exact(texts).logits)
    model.forward = noisy
    assert reads_once(model)
    assert trainer_class(model, ARGS) is PromptOnceTrainer
    assert set(dtypes) == {torch.float32}


def test_a_model_that_scales_its_logits_or_forgets_its_prompt_is_read_text_by_text():
    sliding, _ = random_model("gemma3_text")
    assert trainer_class(sliding, ARGS) is UnpaddedTrainer
    scaled, _ = random_model("llama")
    plain = scaled.forward

    def forward(*args, **kwargs):
        found = plain(*args, **kwargs)
        found.logits = found.logits * 40
        return found

    scaled.forward = forward
    for dtype in (torch.float32, torch.bfloat16):
        assert trainer_class(scaled.to(dtype), ARGS) is UnpaddedTrainer


def test_with_checkpointed_activations_texts_are_read_whole():
    model, _ = random_model("llama")
    args = SimpleNamespace(gradient_checkpointing=True, use_liger_kernel=False)
    assert trainer_class(model, args) is UnpaddedTrainer


@pytest.mark.parametrize("family", ["gpt2", "opt", "mamba", "lfm2", "falcon_h1", "qwen3_5_text"])
def test_padding_before_a_text_changes_no_probability(family):
    """It moves positions that are counted, and enters a state that is not keys and values."""
    model, _ = random_model(family)
    ids, mask = batch(model.config.vocab_size)
    cls = trainer_class(model, ARGS)
    trainer = cls.__new__(cls)
    trainer.accelerator = SimpleNamespace(
        unwrap_model=lambda m: m, autocast=torch.no_grad, is_main_process=True
    )
    trainer.model_kwarg_keys, trainer.temperature = {"logits_to_keep"}, TEMPERATURE
    trainer.use_liger_kernel = trainer._entropy_bonus_enabled = False
    found, _, _ = trainer._get_per_token_logps_and_entropies(model, ids, mask, ANSWER)
    for row in range(0, len(ids), 7):
        text = ids[row][mask[row].bool()]
        with torch.no_grad():
            logps = (model(text[None]).logits[0] / TEMPERATURE).log_softmax(-1)
        answer = int(mask[row, 12:].sum())
        own = logps[-answer - 1 : -1].gather(-1, text[-answer:, None])[:, 0]
        torch.testing.assert_close(found[row, :answer], own, rtol=1e-4, atol=1e-4)


def test_batches_hold_whole_groups_and_the_same_rows_as_before():
    prompts = torch.tensor([[3, 1], [2, 7], [2, 7], [3, 1], [2, 8], [2, 7], [3, 1], [2, 8]])
    five = torch.tensor(5)
    mixed = [
        {"prompt_ids": prompts[places], "advantages": places, "num_items_in_batch": five}
        for places in torch.arange(8).split(4)
    ]
    batches = by_prompt(mixed)
    whole = [row for batch in batches for row in map(tuple, batch["prompt_ids"].tolist())]
    assert len(batches) == 2
    assert sum(one != other for one, other in pairwise(whole)) == 2
    paid = torch.cat([batch["advantages"] for batch in batches])
    assert sorted(paid.tolist()) == list(range(8))
    assert [tuple(prompts[i].tolist()) for i in paid] == whole


def test_the_gradient_is_the_same_bit_for_bit_with_several_threads():
    model, _ = random_model("llama", hidden=64)
    draw = torch.Generator().manual_seed(1)
    words = model.config.vocab_size
    asked = torch.randint(5, words, (4, 120), generator=draw).repeat_interleave(16, 0)
    ids = torch.cat([asked, torch.randint(5, words, (64, 20), generator=draw)], 1)
    threads, gradients = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        for _ in range(3):
            model.zero_grad()
            score_answers(model, ids, torch.ones_like(ids), 20, 1.0)[0].sum().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(gradients[0], one) for one in gradients)


def test_answers_all_paid_alike_move_weights_as_before_and_need_no_way_back(tmp_path):
    """In the third of four steps nothing is paid: there momentum alone moves the weights."""
    start, tokenizer = random_model("llama")
    ends, ways, steps = [], [], []

    class Watched(PromptOnceTrainer):
        def _get_per_token_logps_and_entropies(self, *args, **given):
            found = super()._get_per_token_logps_and_entropies(*args, **given)
            ways.append(found[0].requires_grad)
            return found

    class Plain(Watched):
        def _compute_loss(self, model, inputs):
            return GRPOTrainer._compute_loss(self, model, inputs)

    def pay(prompts, completions, **_):
        steps.append(len(prompts))
        asked = "neither" if len(steps) % 4 == 3 else "Zoo"
        return [float(p[-1]["content"] == asked and i % 2) for i, p in enumerate(prompts)]

    args = GRPOConfig(
        str(tmp_path), use_cpu=True, bf16=False, report_to=[], save_strategy="no",
        per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=4,
        num_generations=4, max_completion_length=8, learning_rate=0.01, disable_tqdm=True,
        gradient_checkpointing=False, logging_steps=1,
    )  # fmt: skip
    for cls in (Plain, Watched):
        torch.manual_seed(0)
        trainer = cls(
            model=deepcopy(start), args=args, processing_class=tokenizer, reward_funcs=pay,
            rollout_func=rollouts_for(args),
            train_dataset=Dataset.from_list([{"prompt": messages(t)} for t in ("Zoo", "Yoga")]),
        )  # fmt: skip
        trainer.train()
        keys = ("loss", "grad_norm", "entropy")
        logged = [[row.get(key) for key in keys] for row in trainer.state.log_history]
        ends.append((logged, torch.cat([p.detach().flatten() for p in trainer.model.parameters()])))
    assert ends[0][0] == ends[1][0]
    assert torch.equal(ends[0][1], ends[1][1])
    assert not torch.equal(ends[0][1], torch.cat([p.flatten() for p in start.parameters()]))
    assert steps == [8] * 8
    assert all(ways[:8])
    assert sum(ways[8:]) == 3


def test_answers_used_for_several_steps_are_weighed_by_the_policy_that_drew_them(tmp_path):
    """Four steps of two passes over one generation: the ratio is 1 until the first step, and refers
    to the weights of that time until the last; where the policy has moved, it is clipped."""
    model, tokenizer = random_model("llama")
    start, seen = deepcopy(model), []

    class Watched(PromptOnceTrainer):
        def _compute_loss(self, model, inputs):
            ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
            mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
            length = inputs["completion_ids"].shape[1]
            with torch.no_grad():
                drew, now = (score_answers(m, ids, mask, length, 1.0)[0] for m in (start, model))
            old = inputs["old_per_token_logps"] * mask[:, -length:]
            torch.testing.assert_close(old, drew, rtol=1e-4, atol=1e-5)
            up = inputs["advantages"][:, None] > 0
            ratio = ((now - drew).exp() - 1) * mask[:, -length:]
            clipped = torch.where(up, ratio > 0.01, ratio < -0.01).sum() / mask[:, -length:].sum()
            loss = super()._compute_loss(model, inputs)
            said = self._metrics["train"]["clip_ratio/region_mean"][-1]
            seen.append((float(ratio.abs().max()), float(clipped), said, ids.tolist()))
            return loss

    args = GRPOConfig(
        str(tmp_path), use_cpu=True, bf16=False, report_to=[], save_strategy="no",
        per_device_train_batch_size=4, steps_per_generation=2, gradient_accumulation_steps=1,
        num_iterations=2, max_steps=4, num_generations=4, max_completion_length=8, epsilon=0.01,
        learning_rate=0.01, lr_scheduler_type="constant", gradient_checkpointing=False,
        disable_tqdm=True,
    )  # fmt: skip
    Watched(
        model=model, args=args, processing_class=tokenizer, rollout_func=rollouts_for(args),
        reward_funcs=lambda completions, **_: [float(i % 2) for i in range(len(completions))],
        train_dataset=Dataset.from_list([{"prompt": messages(text)} for text in ("Zoo", "Yoga")]),
    ).train()  # fmt: skip
    moved, clipped, said, batches = zip(*seen, strict=True)
    assert batches[:2] == batches[2:]
    assert moved[0] < 1e-4 < 0.01 < min(moved[1:])
    assert clipped[0] == 0 < min(clipped[2:])
    assert said == pytest.approx(clipped, abs=1e-3)
