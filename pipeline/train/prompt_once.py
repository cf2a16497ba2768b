"""GRPO's training step with each prompt read once for its whole group, as the sampler reads it.

TRL reads prompt and answer together for every answer. But the answers to a prompt share it, so its
keys and values are computed once, with their gradients, and every answer goes on from there. The
loss is the same but for rounding. Answers of like length go through the model together, so little
is computed for padding, and the logits of answers alone are computed, some at a time. Of answers
that were all paid alike no gradient is computed: it is 0.

Models that are not made so are read text by text. TRL pads them on the left, which moves positions
that are counted (GPT-2) and enters a recurrent state; here the padding stands behind.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from accelerate import DistributedType
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import _ChunkedLogProbFunction, split_tensor_dict

from pipeline.memory.arithmetic import ROWS, WORDS
from pipeline.model import processes
from pipeline.model.exact import InFloat32


def trainer_class(model: PreTrainedModel, args: GRPOConfig) -> type[GRPOTrainer]:
    """PromptOnceTrainer where a prompt's keys and values are all that an answer needs of it, found
    by trying: a model may scale its logits, or keep another state than keys and values."""
    shares = may_share(model.config, args) and _can_share(model)
    return PromptOnceTrainer if shares else UnpaddedTrainer


def _can_share(model: PreTrainedModel) -> bool:
    """Whether answers that go on from their prompt's cache have the log-probabilities of texts that
    are read whole, without padding before them."""
    ids = torch.arange(24, device=model.device).reshape(2, 12).repeat_interleave(2, 0)
    mask = torch.ones_like(ids)
    mask[0, :2] = mask[1, -2:] = 0
    texts, real, place = moved_right(ids, mask, 5)
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), InFloat32():
            logits = model(input_ids=texts, attention_mask=real, use_cache=False).logits[:, :-1]
            each = logits.log_softmax(-1).gather(-1, texts[:, 1:, None])[..., 0]
            ours, _ = score_answers(causal_of(model), ids, mask, 5, 1.0)
    # Errors of models that take no such cache, or keep another state.
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return False
    finally:
        model.train(training)
    return torch.allclose(ours, each.gather(1, place) * mask[:, -5:], rtol=1e-3, atol=1e-3)


def may_share(config: PreTrainedConfig, args: GRPOConfig) -> bool:
    """Whether a prompt's keys and values may be all that an answer needs of it."""
    layers = getattr(config.get_text_config(), "layer_types", None) or ()
    return not (
        set(layers) - {"full_attention"}
        or args.gradient_checkpointing
        or args.use_liger_kernel
        or processes.count() > 1  # whose wrappers gather gradients as they are called
    )


def moved_right(ids: Tensor, mask: Tensor, answer: int) -> tuple[Tensor, Tensor, Tensor]:
    """Texts and their mask with the padding before them moved behind [rows, tokens], and which
    tokens but the first are the last ``answer`` of each now [rows, answer]."""
    width, left = ids.shape[1], mask.argmax(1, keepdim=True)
    order = (torch.arange(width, device=ids.device) + left) % width
    place = torch.arange(width - answer - 1, width - 1, device=ids.device) - left
    return ids.gather(1, order), mask.gather(1, order), place


def causal_of(model: Any) -> Any:
    """The model itself, below PEFT's."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class UnpaddedTrainer(GRPOTrainer):
    """TRL's trainer, with the padding of texts behind them, and no gradient computed that is 0."""

    def _prepare_inputs(self, generation_batch: dict[str, Any]) -> dict[str, Any]:
        """As TRL's, but where all answers go into one step, the batches that its gradient is summed
        over have whole groups: TRL mixes them, so that each batch would read most prompts, and few
        would be paid alike."""
        before, trainer = self._buffered_inputs, cast("Any", self)
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)
        batches, args = self._buffered_inputs, trainer.args
        in_one_step = args.gradient_accumulation_steps % args.steps_per_generation == 0
        if trainer.model.training and batches is not before and in_one_step:
            self._buffered_inputs = by_prompt(batches)
            return self._buffered_inputs[self._step % args.steps_per_generation]
        return inputs

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """As TRL's; where nothing but advantages moves the weights and all are 0, without the way
        back. Each weight has a gradient all the same, which an optimizer's momentum goes by."""
        trainer = cast("Any", self)
        other = trainer.beta or trainer._entropy_bonus_enabled or trainer.aux_loss_enabled
        # Several processes gather gradients as each goes back, so all of them have to.
        alone = trainer.accelerator.distributed_type == DistributedType.NO
        if other or not alone or not torch.is_grad_enabled() or inputs["advantages"].any():
            return super()._compute_loss(model, inputs)
        with torch.no_grad():
            loss = super()._compute_loss(model, inputs)
        return loss + 0 * sum(weight.sum() for weight in model.parameters() if weight.requires_grad)

    def _get_per_token_logps_and_entropies(  # type: ignore[no-untyped-def]
        self, model, input_ids, attention_mask, logits_to_keep, **more
    ):
        """As TRL's [rows, logits_to_keep]."""
        ids, mask, place = moved_right(input_ids, attention_mask, logits_to_keep)
        first = int(place.min())
        logps, entropies, load = super()._get_per_token_logps_and_entropies(
            model, ids, mask, ids.shape[1] - 1 - first, **more
        )
        logps, entropies = (
            of if of is None else of.gather(1, place - first) for of in (logps, entropies)
        )
        return logps, entropies, load


class PromptOnceTrainer(UnpaddedTrainer):
    """TRL's trainer, which computes log-probabilities as this module's docstring says."""

    def _get_per_token_logps_and_entropies(  # type: ignore[no-untyped-def]
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None,
        compute_entropy=False, compute_aux_loss=False, **more,
    ):  # fmt: skip
        """Log-probabilities and entropies [rows, logits_to_keep], 0 where an answer has ended. The
        load of experts is that of whole texts, so these are read for it."""
        if compute_aux_loss:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size=batch_size,
                compute_entropy=compute_entropy, compute_aux_loss=True, **more,
            )  # fmt: skip
        causal = causal_of(self.accelerator.unwrap_model(model))
        with self.accelerator.autocast():
            logps, entropies = score_answers(
                causal, input_ids, attention_mask, logits_to_keep, self.temperature
            )
        return logps, entropies if compute_entropy else None, None


def by_prompt(batches: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The rows of all batches, those of one prompt together, in as many batches as before."""
    if len(batches) == 1:
        return batches
    prompts = torch.cat([batch["prompt_ids"] for batch in batches])
    order = prompts.unique(dim=0, return_inverse=True)[1].argsort(stable=True)
    rows: Any = {
        key: torch.cat([batch[key] for batch in batches])[order] if value.ndim else value
        for key, value in batches[0].items()
    }
    split: Any = split_tensor_dict(rows, len(batches))
    return list(split)


def score_answers(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, answer: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability in nats of each token of the answers, and the entropy that it is drawn from,
    both [rows, answer], 0 where ``mask`` is.

    Args:
        ids: prompts, padded on the left, and answers, padded on the right [rows, prompt + answer].
        mask: 1 where there is a token [rows, prompt + answer].
        answer: length of the longest answer.
    """
    read = ids.shape[1] - answer - 1  # the prompt's last token has the answer's first logits
    prompts, prompt_of = torch.cat([ids[:, :read], mask[:, :read]], 1).unique(
        dim=0, return_inverse=True
    )
    asked = model.base_model(
        input_ids=prompts[:, :read], attention_mask=prompts[:, read:], use_cache=True,
        past_key_values=DynamicCache(config=model.config),
    ).past_key_values  # fmt: skip
    lengths = mask[:, -answer:].sum(1)
    logps, entropies = (torch.zeros(len(ids), answer, device=ids.device) for _ in range(2))
    head: Any = model.get_output_embeddings()
    for rows in lengths.argsort(stable=True).split(ROWS):
        end = read + 1 + int(lengths[rows].max())
        # Selected, not indexed: the gradients of an index are added up in any order, and a training
        # that goes on from a checkpoint would end with other bytes.
        kept = DynamicCache(
            [
                tuple(part.index_select(0, prompt_of[rows]) for part in (la.keys, la.values))
                for la in asked.layers
            ]
        )
        hidden = model.base_model(
            input_ids=ids[rows, read:end], attention_mask=mask[rows, :end], use_cache=True,
            past_key_values=kept,
        ).last_hidden_state[:, :-1]  # fmt: skip
        real = mask[rows, read + 1 : end].bool()
        place = rows[:, None].expand_as(real)[real], real.nonzero()[:, 1]
        found = _ChunkedLogProbFunction.apply(
            hidden[real], head.weight, head.bias, ids[rows, read + 1 : end][real], temperature,
            WORDS, None, 1.0,
        )  # fmt: skip
        logps, entropies = (
            whole.index_put(place, part)
            for whole, part in zip((logps, entropies), found, strict=True)
        )
    return logps, entropies
