"""Asks an arm's model, loaded here or held by a server, and writes its answers as they come."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

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
    answer_limit,
    batches,
    prepare,
    reasoning_prefix,
    render,
    sample,
)
from pipeline.model.load import check_template, load_model, quiet, read_tokenizer
from rewards.parse import whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
        prefix = reasoning_prefix(self._tokenizer)
        limit = asking.max_tokens or self.limit(rows)
        decoding = Decoding(limit, asking.temperature, asking.top_p)
        prompts, count = self._prompts(rows, asking), asking.samples
        seeds = [seed_of(self.seed, stream, self.arm, row["id"]) for row in rows]
        drawn = (
            self.server.sample(self.served["id"], prompts, count, decoding, seeds)
            if self.server
            else sample(*self._loaded, prompts, count, decoding, seeds, asking.rows)
        )
        for i, samples in drawn:
            yield [
                {
                    "id": rows[i]["id"],
                    "arm": self.arm,
                    "sample": number,
                    "completion": prefix + one.completion,
                    "finish_reason": one.finish_reason,
                    "tokens": one.tokens,
                }
                for number, one in enumerate(samples)
            ]

    def continued(
        self, rows: Mapping[str, Row], opened: Sequence[Opening], asking: EvalSection
    ) -> list[str]:
        """One answer for each opening, which the model's turn begins with, drawn here; none ("")
        where it does not end."""
        limit = asking.max_tokens or self.limit(list(rows.values()))
        asked = [rows[one.problem] for one in opened]
        prompts = [
            prompt + one.text.removeprefix(reasoning_prefix(self._tokenizer))
            for prompt, one in zip(self._prompts(asked, asking), opened, strict=True)
        ]
        seeds = [seed_of(self.seed, "continued", self.arm, *one[:2]) for one in opened]
        decoding = Decoding(limit, asking.temperature, asking.top_p)
        texts = [one.text for one in opened]
        continued = sample(*self._loaded, prompts, 1, decoding, seeds, asking.rows)
        for i, [drawn] in paced(continued, len(texts), f"thinking {self.arm}", " answers"):
            texts[i] = whole(texts[i] + drawn.completion, drawn.finish_reason)
        return texts


def write_answers(
    asker: Asker,
    rows: Sequence[Row],
    asking: EvalSection,
    path: Path,
    stream: str,
    goes_on: bool,
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
