"""Answers from a vLLM server, in place of sampling here.

A recipe's ``eval: {server: http://host:8000/v1}`` asks it. Prompts (rendered here), temperature,
top_p, the limit of tokens and those that end an answer are as in ``pipeline.model.decode.sample``.
Whatever else could change the distribution, such as a top-k that the model's
``generation_config.json`` suggests, is set to nothing. Not promised: the same answers again. Each
problem has its own seed, but a server draws random numbers in its own way, and rounds as the
requests beside one have it.

The protocol is OpenAI's completions with vLLM's fields (``top_k``, ``return_token_ids``, …). A key
that the server wants is taken from ``VLLM_API_KEY``. Everything that comes back is treated as text.
"""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import httpx

from data.common.errors import UserError, going_on
from pipeline.model.decode import Sample
from pipeline.model.decoding import Decoding

T = TypeVar("T")

#: Seconds before each further try, where a server cannot be reached or is busy.
WAITS: tuple[float, ...] = (1, 2, 4, 8, 16)
#: Seconds to connect, and to wait for all answers to a prompt.
CONNECT, ANSWER = 10.0, 1800.0
#: Requests under way at most.
AT_MOST = 64
#: Fields of a request that have the server sample from the model as it is.
_AS_IT_IS = {
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "add_special_tokens": False,  # the rendered prompt has them
    "return_token_ids": True,
}

#: The body of a request.
Body = Mapping[str, object]


class Server:
    """A server by its address, ``http(s)://host:port/v1``."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")

    def model_of(self, names: Sequence[str], model: str, dtype: str) -> dict[str, str]:
        """``{id, root}`` of an arm's model: the one served under the first of ``names``, else the
        one of the folder (or hub id) ``model``, else one served under another of ``names``.

        Raises:
            UserError: when there is none; says which command serves it.
        """
        cards = asyncio.run(self._models())
        for name in (names[0], model, os.path.abspath(model), *names[1:]):
            for card in cards:
                if name in card.values():
                    return card
        served = ", ".join(_one_line(card["id"]) for card in cards) or "no model"
        raise UserError(
            f"{self.address} holds {served}, not {model}; `vllm serve {shlex.quote(model)} "
            f"--served-model-name {names[0]} --dtype {dtype}` serves it"
        )

    def sample(
        self,
        model: str,
        prompts: Sequence[str],
        samples: int,
        decoding: Decoding,
        seeds: Sequence[int],
        stops: Sequence[int],
    ) -> Iterator[tuple[int, list[Sample]]]:
        """Yield (prompt index, its samples) as they come; one of the tokens ``stops`` ends each.

        Raises:
            UserError: when the server refuses, can no longer be reached, or breaks the protocol.
        """
        # At temperature 0 all answers are the same, and vLLM gives only one of them.
        drawn = 1 if decoding.temperature == 0 else samples
        bodies = [
            {
                "model": model,
                "prompt": prompt,
                "n": drawn,
                "seed": seed,
                "max_tokens": decoding.max_tokens,
                "temperature": decoding.temperature,
                "top_p": decoding.top_p,
                "stop_token_ids": list(stops),
                **_AS_IT_IS,
            }
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        # One event loop for all: Ctrl-C ends the requests under way, and the server's work on them.
        with asyncio.Runner() as loop:
            answers = self._completed(bodies, partial(_samples, count=drawn))
            while (answer := loop.run(_next(answers))) is not None:
                i, said = answer
                yield i, said * (samples // drawn)

    async def _models(self) -> list[dict[str, str]]:
        async with self._client() as client:
            return await self._ask(client, "GET", "/models", _cards)

    async def _completed(
        self, bodies: Sequence[Body], read: Callable[[Any], T]
    ) -> AsyncIterator[tuple[int, T]]:
        """Yield (index, its answer as ``read``) of each request, as they are answered."""
        turns = asyncio.Semaphore(AT_MOST)

        async def complete(i: int) -> tuple[int, T]:
            async with turns:
                return i, await self._ask(client, "POST", "/completions", read, bodies[i])

        async with self._client() as client:
            tasks = [asyncio.create_task(complete(i)) for i in range(len(bodies))]
            try:
                for task in asyncio.as_completed(tasks):
                    yield await task
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _client(self) -> httpx.AsyncClient:
        key = os.environ.get("VLLM_API_KEY")
        return httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(ANSWER, connect=CONNECT),
        )

    async def _ask(
        self,
        client: httpx.AsyncClient,
        method: str,
        path: str,
        read: Callable[[Any], T],
        body: Body | None = None,
    ) -> T:
        """The server's JSON as ``read`` makes it. Tries again where the server cannot be reached,
        is busy, fails, or gives what ``read`` cannot take."""
        trouble = ""
        for wait in (0, *WAITS):
            await asyncio.sleep(wait)
            try:
                response = await client.request(method, self.address + path, json=body)
                if response.is_success:
                    return read(response.json())
                trouble = f"answers {response.status_code} ({_one_line(response.text)})"
                if (
                    response.is_client_error
                    and response.status_code != httpx.codes.TOO_MANY_REQUESTS
                ):
                    raise UserError(
                        f"the server {self.address} {trouble} to {method} {path} (VLLM_API_KEY is "
                        "its key; its address ends in /v1)"
                    )
            except httpx.ReadTimeout:  # the same request would take as long again
                raise UserError(
                    f"the server {self.address} has not answered within {ANSWER:g} s; what was "
                    f"answered is kept, {going_on()}"
                ) from None
            except httpx.RequestError as error:
                trouble = f"cannot be reached ({_one_line(f'{type(error).__name__}: {error}')})"
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                trouble = f"gives no whole answer ({_one_line(repr(error))})"
        raise UserError(
            f"the server {self.address} {trouble} to {method} {path}, {len(WAITS) + 1} times; what "
            f"was answered is kept, {going_on()}"
        )


async def _next(answers: AsyncIterator[T]) -> T | None:
    return await anext(answers, None)


def _cards(said: Any) -> list[dict[str, str]]:
    """``{id, root}`` of each model in the answer to ``GET /models``."""
    return [{"id": str(card["id"]), "root": str(card.get("root"))} for card in said["data"]]


def _samples(said: Any, count: int) -> list[Sample]:
    """The ``count`` choices in the answer to ``POST /completions``, by their index, as sampling
    here would give them."""
    choices = {choice["index"]: choice for choice in said["choices"]}
    if choices.keys() != set(range(count)):
        raise ValueError(f"{len(choices)} choices where {count} were asked for")
    samples = []
    for _, choice in sorted(choices.items()):
        text, reason = choice["text"], choice["finish_reason"]
        if not isinstance(text, str) or reason not in ("stop", "length"):
            raise ValueError(f"a choice that ended by {reason!r}")
        samples.append(Sample(text, reason, len(choice["token_ids"])))
    return samples


def _one_line(words: object) -> str:
    """A server's words on one line, without what would steer a terminal."""
    text = "".join(c if c.isprintable() else " " for c in str(words))
    return " ".join(text.split())[:300] or "no words"
