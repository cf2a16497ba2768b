"""Asks an arm's model, loaded here or held by a server, and writes its answers as they come."""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.common.errors import UserError
from data.common.files import to_line, write_bytes
from data.common.seeds import seed_of
from data.recipe import Recipe
from data.rows import read_split
from data.sections import EvalSection
from eval.answers.parts import kept
from eval.answers.server import Server
from pipeline.model.load import check_template, load_model, quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipeline.model.decode import Decoding, Sample


class Asker:
    """An arm's model, loaded when it is asked, or held by ``server``. ``seconds`` counts from the
    first question."""

    def __init__(self, recipe: Recipe, arm: str, server: str | None = None) -> None:
        self.recipe, self.arm, self._started = recipe, arm, 0.0
        self.server = Server(server) if server else None

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        from pipeline.model.decode import prepare

        quiet()
        model, tokenizer = load_model(self.recipe.run.model(self.arm), self.recipe.dtype)
        prepare(model)
        return model, tokenizer

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        from pipeline.model.lengths import read_tokenizer

        model = self.recipe.run.model(self.arm)
        tokenizer = read_tokenizer(model)
        check_template(tokenizer, model)
        return tokenizer

    @cached_property
    def served(self) -> dict[str, str]:
        """What the arm's server calls the arm's model, and where it has it from.

        Raises:
            NotServedError: when it holds another one.
        """
        names = [self.arm]
        while names[-1] != "base" and self.recipe.all_arms[names[-1]].trainer == "none":
            names.append(self.recipe.all_arms[names[-1]].start)
        model = self.recipe.run.model(self.arm)
        return self.server.model_of(names, model, self.recipe.dtype)

    def limit(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Tokens that an answer to ``rows`` may have where the recipe does not say."""
        from pipeline.model.decode import answer_limit

        return answer_limit(self._tokenizer, rows)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def _prompts(self, rows: Sequence[Mapping[str, Any]], asking: EvalSection) -> list[str]:
        """The rows' prompts as the model reads them."""
        from pipeline.model.decode import render

        shots = shots_for(self.recipe, rows, asking.shots)
        return [render(self._tokenizer, row["prompt"], shots[row["id"]]) for row in rows]

    def batches(self, rows: Sequence[Mapping[str, Any]], asking: EvalSection) -> list[list[int]]:
        """The rows, by index, that ``answers`` draws together; a server has its own mind."""
        from pipeline.model.decode import batches

        if self.server:
            return [[i] for i in range(len(rows))]
        return batches(self._prompts(rows, asking), asking.samples, asking.rows)

    def shares(
        self, rows: Sequence[Mapping[str, Any]], asking: EvalSection, count: int
    ) -> list[list[Mapping[str, Any]]]:
        """``rows`` in ``count`` parts, each in the order of ``rows``: whole batches of those that
        ``answers`` would draw of all, dealt out in turn. The last, which may be smaller, is the
        last of its part too, so a part falls into the same batches."""
        from pipeline.model.decode import batches

        dealt = batches(self._prompts(rows, asking), asking.samples, asking.rows)
        return [
            [rows[i] for i in sorted(chain.from_iterable(dealt[k::count]))] for k in range(count)
        ]

    def answers(
        self, rows: Sequence[Mapping[str, Any]], asking: EvalSection, stream: str = "sample"
    ) -> Iterator[list[dict[str, Any]]]:
        """Yield the sample rows of each problem. ``stream`` names the random stream: with another
        one the answers are fresh."""
        from pipeline.model.decode import Decoding, reasoning_prefix

        prefix = reasoning_prefix(self._tokenizer)
        decoding = Decoding(
            max_tokens=asking.max_tokens or self.limit(rows),
            temperature=asking.temperature,
            top_p=asking.top_p,
        )
        prompts = self._prompts(rows, asking)
        seeds = [seed_of(self.recipe.seed, stream, self.arm, row["id"]) for row in rows]
        self._started = time.monotonic()
        for i, found in self._drawn(prompts, asking, decoding, seeds):
            yield [
                {
                    "id": rows[i]["id"],
                    "arm": self.arm,
                    "sample": number,
                    "completion": prefix + one.completion,
                    "finish_reason": one.finish_reason,
                    "tokens": one.tokens,
                }
                for number, one in enumerate(found)
            ]

    def _drawn(
        self, prompts: list[str], asking: EvalSection, decoding: Decoding, seeds: list[int]
    ) -> Iterator[tuple[int, list[Sample]]]:
        """Yield (prompt index, its samples), from the server or drawn here."""
        from pipeline.model.decode import sample

        if self.server:
            held = self.served["id"]
            at_once = max(1, asking.rows // asking.samples)
            yield from self.server.sample(
                held, self._tokenizer, prompts, asking.samples, decoding, seeds, at_once
            )
            return
        model, tokenizer = self._loaded
        yield from sample(model, tokenizer, prompts, asking.samples, decoding, seeds, asking.rows)


def write_answers(
    asker: Asker,
    rows: Sequence[Mapping[str, Any]],
    asking: EvalSection,
    path: Path,
    stream: str,
    goes_on: bool,
    elsewhere: Collection[str] = (),
) -> None:
    """Write the answers to ``rows`` that neither ``path`` has yet nor other files, which have those
    to the problems ``elsewhere``, as they come.

    Rows are drawn in batches, and rounded as their neighbours have it. So a batch that lacks one is
    drawn again whole, and the answers are those that would have come without an interruption.
    """
    done = kept(path, asking.samples) if goes_on else {}
    answered = done.keys() | set(elsewhere)
    lacking: set[str] = set()
    if answered and not all(row["id"] in answered for row in rows):
        batches = asker.batches(rows, asking)
        ids = [[rows[i]["id"] for i in batch] for batch in batches]
        lacking = {one for batch in ids if not answered.issuperset(batch) for one in batch}
    missing = [row for row in rows if not answered or row["id"] in lacking]
    lines = (line for one, found in done.items() if one not in lacking for line in found)
    write_bytes(path, b"".join(lines))
    if not missing:
        return
    said = time.monotonic()
    # A server may send lone surrogates, which UTF-8 cannot hold; in JSON their escape can.
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        for count, found in enumerate(asker.answers(missing, asking, stream), 1):
            file.write("".join(map(to_line, found)))
            file.flush()
            now = time.monotonic()
            if now - said > 15 or count == len(missing):
                said = now
                print(
                    f"{stream} {asker.arm}: {count}/{len(missing)} problems x {asking.samples} "
                    f"answers  {count * asking.samples / asker.seconds:.0f} answers/s",
                    flush=True,
                )


def shots_for(
    recipe: Recipe, rows: Sequence[Mapping[str, Any]], count: int
) -> dict[str, list[tuple[str, str]]]:
    """By ``id``, ``count`` solved training problems of each problem's tier.

    Raises:
        UserError: when a tier has fewer.
    """
    if not count:
        return {row["id"]: [] for row in rows}
    by_tier: dict[str, list[dict[str, Any]]] = {}
    for row in read_split(recipe.run, "train"):
        by_tier.setdefault(row["tier"], []).append(row)
    found = {}
    for row in rows:
        known = by_tier.get(row["tier"], [])
        if len(known) < count:
            raise UserError(
                f"{recipe.path}: {count} shots need as many train problems of tier "
                f"{row['tier']!r}, which has {len(known)}"
            )
        rng = random.Random(seed_of(recipe.seed, "shots", row["id"]))
        found[row["id"]] = [(one["prompt"], one["gold"]) for one in rng.sample(known, count)]
    return found
