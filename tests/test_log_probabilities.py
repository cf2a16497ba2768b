"""``pipeline.model.score``: every token gets the log-probability that it has alone."""

import random

import pytest
import torch
from tiny import random_model

from pipeline.model.score import Encoded, answer_logits, batches_of, log_probabilities

pytestmark = pytest.mark.slow


@pytest.fixture
def texts():
    rng = random.Random(0)
    return [
        Encoded(*(tuple(rng.randrange(500) for _ in range(count)) for count in counts))
        for counts in ((40, 7), (9, 1), (23, 12), (9, 30))
    ]


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3_text"])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(("budget", "count"), [(2**26, 1), (1, 4)])
def test_scores_are_those_of_each_text_by_itself(architecture, left, budget, count, texts):
    model, _ = random_model(architecture)
    scored = {i: (logits, ids) for i, logits, ids in answer_logits(model, texts, budget, left)}
    assert len(scored) == len(texts)
    for i, (logits, tokens) in scored.items():
        assert tuple(tokens.tolist()) == texts[i].answer
        with torch.no_grad():
            both = torch.tensor([texts[i].prompt + texts[i].answer])
            alone = model(input_ids=both).logits[0, len(texts[i].prompt) - 1 : -1]
        torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-4)
    assert len(list(batches_of(texts, budget // model.config.vocab_size, left))) == count
    for found, text in zip(log_probabilities(model, texts), texts, strict=True):
        assert len(found) == len(text.answer)
        assert max(found) < 0


@pytest.mark.parametrize("left", [False, True])
def test_no_batch_holds_more_logits_than_allowed_unless_it_is_one_text(left):
    texts = [Encoded((1,) * (100 - n), (2,) * n) for n in (3, 50, 7, 7, 20, 1, 90, 4)]
    batches = list(batches_of(texts, 60, left))
    assert sorted(i for batch in batches for i in batch) == list(range(len(texts)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(len(texts[i].answer) + 1 for i in batch) <= 60
    assert len(batches) < len(texts)
