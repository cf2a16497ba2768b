"""Asks an arm's model, loaded here or held by a server, and writes its answers as they come."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from data.common.console import paced
from data.common.errors import require
from data.common.files import to_line, write_bytes
from data.common.seeds import seed_of
from data.rows import Row, read_split
from data.run import Run
from data.sections import EvalSection
from eval.answers.files import SampleRow
from eval.answers.interventions import Opening
from eval.answers.server import Server
from pipeline.model.decode import (
    Decoding,
    Sample,
    answer_limit,
    batches,
    count_tokens,
    prepare,
    reasoning_prefix,
    render,
    sample,
)
from pipeline.model.load import check_template, load_model, quiet, read_stops, read_tokenizer
from rewards.parse import whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Turn(NamedTuple):
    """A reply to an answer, after which the model answers again.

    Attributes:
        problem, sample: whose answer it is.
        way: names the random stream, so that two turns about one answer differ.
    """

    problem: str
    sample: int
    way: str
    answer: str
    said: str


class Asker:
    """An arm's model, loaded when it is first asked, or held by a server.

    Attributes:
        dtype: of the weights.
        seed: the recipe's; every problem's random stream is hashed from it.
    """

    def __init__(self, run: Run, arm: str, dtype: str, seed: int, server: str | None = None):
        self.run, self.arm, self.dtype, self.seed = run, arm, dtype, seed
        self.server = Server(server) if server else None

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        quiet()
        model, tokenizer = load_model(self.run.model(self.arm), self.dtype)
        prepare(model)
        return model, tokenizer

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        model = self.run.model(self.arm)
        tokenizer = read_tokenizer(model)
        check_template(tokenizer, model)
        return tokenizer

    @cached_property
    def _stops(self) -> list[int]:
        return read_stops(self.run.model(self.arm), self._tokenizer)

    @cached_property
    def _prefix(self) -> str:
        return reasoning_prefix(self._tokenizer)

    @cached_property
    def served(self) -> dict[str, str]:
        """The name and source of the arm's model at its server; nothing where it is loaded here.

        Raises:
            UserError: when the server holds another model.
        """
        if not self.server:
            return {}
        names = (self.arm, self.run.weights_of(self.arm))
        return self.server.model_of(names, self.run.model(self.arm), self.dtype)

    def limit(self, rows: Sequence[Row]) -> int:
        """Tokens that an answer to ``rows`` may have where the recipe does not say."""
        return answer_limit(self._tokenizer, rows)

    def _prompts(self, rows: Sequence[Row], asking: EvalSection) -> list[str]:
        """The rows' prompts as the model reads them."""
        tiers = {row["id"]: row["tier"] for row in rows}
        shots = shots_for(self.run, self.seed, tiers, asking.shots)
        return [render(self._tokenizer, row["prompt"], shots[row["id"]]) for row in rows]

    def batches(self, rows: Sequence[Row], asking: EvalSection) -> list[list[int]]:
        """The rows, by index, that ``answers`` draws together; a server batches as it likes."""
        if self.server:
            return [[i] for i in range(len(rows))]
        return batches(self._prompts(rows, asking), asking.samples, asking.rows)

    def answers(
        self, rows: Sequence[Row], asking: EvalSection, stream: str = "sample"
    ) -> Iterator[list[SampleRow]]:
        """Yield the answers to each problem. ``stream`` names the random stream: another one gives
        fresh answers."""
        asking = replace(asking, max_tokens=asking.max_tokens or self.limit(rows))
        seeds = [seed_of(self.seed, stream, self.arm, row["id"]) for row in rows]
        for i, samples in self._drawn(self._prompts(rows, asking), asking, seeds):
            yield [self._row(rows[i]["id"], number, one) for number, one in enumerate(samples)]

    def _row(self, problem: str, number: int, one: Sample) -> SampleRow:
        return {
            "id": problem,
            "arm": self.arm,
            "sample": number,
            "completion": self._prefix + one.completion,
            "finish_reason": one.finish_reason,
            "tokens": one.tokens,
        }

    def _drawn(
        self, prompts: Sequence[str], asking: EvalSection, seeds: Sequence[int]
    ) -> Iterator[tuple[int, list[Sample]]]:
        """Yield (prompt index, its samples), here or at the server; ``max_tokens`` is given."""
        decoding = Decoding(asking.max_tokens or 0, asking.temperature, asking.top_p)
        count = asking.samples
        if self.server:
            held = self.served["id"]
            return self.server.sample(held, prompts, count, decoding, seeds, self._stops)
        return sample(*self._loaded, prompts, count, decoding, seeds, asking.rows)

    def check_turns(self) -> None:
        """Raise UserError unless the model can be told what is wrong with its answer."""
        model, tokenizer = self.run.model(self.arm), self._tokenizer
        turns = "Plan the day.", "Nothing fits.", "Breaks rules: overlap. Answer again."
        asked, given, said = turns
        rendered = render(tokenizer, said, [(asked, given)])
        require(
            all(turn in rendered for turn in turns),
            f"the chat template of {model} leaves out earlier turns, so its answers cannot be "
            "given back; take another model",
        )
        [spelt] = count_tokens(tokenizer, [said])
        require(
            2 * spelt <= len(said),
            f"{model} has no words for what the checker says (its tokenizer spells them, in "
            f"{spelt} tokens for {len(said)} letters), so its answers cannot be given back; take "
            "a model that was pretrained on text, such as RECIPE=smollm2-135m-cpu",
        )

    def load(self) -> PreTrainedTokenizerBase:
        """Load the model now; returns its tokenizer."""
        return self._loaded[1]

    def to_one(
        self, row: Row, shots: Sequence[tuple[str, str]], asking: EvalSection
    ) -> list[SampleRow]:
        """Answers to a problem that no file of the run has, no longer than the model has room for,
        by the asker's own seed.

        Raises:
            UserError: when the prompt, with room for the gold answer, is longer than its context.
        """
        prompt = render(self._tokenizer, row["prompt"], shots)
        (asked, needed), context = self._sizes([prompt, row["gold"]])
        limit = asking.max_tokens or self.limit([row])
        if context is not None:
            require(
                asked + needed <= context,
                f"the prompt has {asked} tokens and its best answer {needed}, more than the "
                f"{context} that this model can hold; leave out events, or ask a larger model "
                "(MODEL=)",
            )
            limit = min(limit, context - asked)
        [(_, drawn)] = self._drawn([prompt], replace(asking, max_tokens=limit), [self.seed])
        return [self._row(row["id"], number, one) for number, one in enumerate(drawn)]

    def _sizes(self, texts: Sequence[str]) -> tuple[list[int], int | None]:
        """Tokens of each text, and of the context of the model, which is loaded here; None where
        its config sets no limit."""
        model, tokenizer = self._loaded
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        return count_tokens(tokenizer, texts), context

    def second_turns(
        self, rows: Mapping[str, Row], turns: Sequence[Turn], asking: EvalSection
    ) -> Iterator[SampleRow]:
        """Yield one further answer for each of ``turns``, in their order.

        Raises:
            UserError: when a conversation, with room for the answer, is longer than the context of
                a model that is loaded here.
        """
        tiers = {name: row["tier"] for name, row in rows.items()}
        shots = shots_for(self.run, self.seed, tiers, asking.shots)
        prompts = [
            render(
                self._tokenizer,
                one.said,
                [*shots[one.problem], (rows[one.problem]["prompt"], one.answer)],
            )
            for one in turns
        ]
        if prompts and not self.server:
            sizes, context = self._sizes(prompts)
            needed = max(sizes) + (asking.max_tokens or 0)
            require(
                context is None or needed <= context,
                f"a second turn of {self.arm} takes {needed} tokens with its answer, more than the "
                f"{context} that {self.run.model(self.arm)} can hold; lower eval.max_tokens",
            )
        seeds = [seed_of(self.seed, "second", self.arm, *one[:3]) for one in turns]
        drawn = self._drawn(prompts, replace(asking, samples=1), seeds)
        texts = dict(paced(drawn, len(turns), f"mend {self.arm}", " answers"))
        for i, one in enumerate(turns):
            [given] = texts[i]
            yield self._row(one.problem, one.sample, given)

    def continued(
        self, rows: Mapping[str, Row], opened: Sequence[Opening], asking: EvalSection
    ) -> list[str]:
        """One answer for each opening, which the model's turn begins with, drawn here; none ("")
        where it does not end."""
        limit = asking.max_tokens or self.limit(list(rows.values()))
        asked = [rows[one.problem] for one in opened]
        prompts = [
            prompt + one.text.removeprefix(self._prefix)
            for prompt, one in zip(self._prompts(asked, asking), opened, strict=True)
        ]
        seeds = [seed_of(self.seed, "continued", self.arm, *one[:2]) for one in opened]
        texts = [one.text for one in opened]
        continued = self._drawn(prompts, replace(asking, samples=1, max_tokens=limit), seeds)
        for i, [drawn] in paced(continued, len(texts), f"thinking {self.arm}", " answers"):
            texts[i] = whole(texts[i] + drawn.completion, drawn.finish_reason)
        return texts


def write_answers(
    asker: Asker, rows: Sequence[Row], asking: EvalSection, path: Path, stream: str, goes_on: bool
) -> None:
    """Write the answers to ``rows``, as they come and in the end in the order of ``rows``; those
    that ``path`` has stay if it ``goes_on``.

    Neighbours in a batch change the rounding. A batch that lacks an answer is drawn again whole,
    so the answers are those that would have come without an interruption.
    """
    done = kept(path, asking.samples) if goes_on else {}
    lacking = [
        batch
        for batch in asker.batches(rows, asking)
        if any(rows[i]["id"] not in done for i in batch)
    ]
    missing = [rows[i] for i in sorted(chain.from_iterable(lacking))]
    for row in missing:
        done.pop(row["id"], None)
    write_bytes(path, b"".join(chain.from_iterable(done.values())))
    started = time.monotonic()
    drawn = asker.answers(missing, asking, stream) if missing else ()
    # A server may send lone surrogates, which UTF-8 cannot hold; in JSON their escape can.
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        what, each = f"{stream} {asker.arm}", f" problems x {asking.samples} answers"
        for answers in paced(drawn, len(missing), what, each):
            file.write("".join(map(to_line, answers)))
            file.flush()
    if missing:
        speed = len(missing) * asking.samples / (time.monotonic() - started)
        print(f"{what}: {len(missing)}{each}  {speed:.0f} answers/s", flush=True)
    lines = kept(path, asking.samples)
    write_bytes(path, b"".join(line for row in rows for line in lines[row["id"]]))


def kept(path: Path, samples: int) -> dict[str, list[bytes]]:
    """By problem, the lines of a file; only of problems with all their ``samples`` answers."""
    content = path.read_bytes() if path.is_file() else b""
    rows: dict[str, list[bytes]] = {}
    for line in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
        # Without its torn or spoilt line a problem lacks an answer, and is asked again.
        with suppress(ValueError, RecursionError, KeyError, TypeError):
            rows.setdefault(json.loads(line)["id"], []).append(line)
    return {identity: lines for identity, lines in rows.items() if len(lines) == samples}


def shots_for(
    run: Run, seed: int, tiers: Mapping[str, str], count: int
) -> dict[str, list[tuple[str, str]]]:
    """By ``id``, ``count`` solved training problems of each problem's tier, as prompt and gold.

    Args:
        tiers: of each problem, by its ``id``.

    Raises:
        UserError: when a tier has fewer.
    """
    train = read_split(run, "train") if count else []
    by_tier = {t: [row for row in train if row["tier"] == t] for t in set(tiers.values())}
    shots = {}
    for identity, tier in tiers.items():
        known = by_tier[tier]
        require(
            len(known) >= count,
            f"{count} shots need as many train problems of tier {tier!r}, of which "
            f"{run.split('train')} has {len(known)}",
        )
        rng = random.Random(seed_of(seed, "shots", identity))
        shots[identity] = [(one["prompt"], one["gold"]) for one in rng.sample(known, count)]
    return shots
