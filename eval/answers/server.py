"""Samples from an OpenAI-compatible completions server, in place of ``pipeline.model.decode.sample``.

``vllm serve MODEL --data-parallel-size N`` spreads over N GPUs what is asked of it; a recipe's
``eval: {server: http://host:8000/v1}`` asks it. What is the same as in sampling here: the prompts,
rendered here; temperature, top_p and the limit of tokens; nothing else that changes the
distribution, since what a model's ``generation_config.json`` suggests (a top-k, a penalty) is set
to nothing; the end token counts as one. What is not promised: the same answers again. Each problem
has its own seed, but a server makes its random numbers in its own way, and rounds as the requests
beside one have it.

The protocol is vLLM's: ``GET /models`` lists ``{id, root}``; ``POST /completions`` takes fields
that other servers may not know (``top_k``, ``return_token_ids``, …); either refuses with ``{error:
{message}}``. A key that the server wants is taken from ``VLLM_API_KEY``. What comes back is text
and stays text.
"""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from data.common.errors import UserError, going_on

if TYPE_CHECKING:
    from httpx import AsyncClient, Response
    from transformers import PreTrainedTokenizerBase

    from pipeline.model.decode import Decoding, Sample

T = TypeVar("T")

#: Seconds before each further try, where a server cannot be reached or is busy.
WAITS: tuple[float, ...] = (1, 2, 4, 8, 16)
#: Seconds to connect, and to wait for all answers to a prompt.
CONNECT, ANSWER = 10.0, 1800.0
#: Requests under way at most, whatever the recipe's ``rows`` would allow.
AT_MOST = 64
#: What tells a server to sample from the model as it is.
_AS_IT_IS = {
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "add_special_tokens": False,  # the rendered prompt has them
    "return_token_ids": True,
}
_TOO_MANY = 429


class NotServedError(UserError):
    """The server does not hold the model of an arm."""


class Server:
    """A server by its address, ``http(s)://host:port/v1``."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")

    def model_of(self, names: Sequence[str], model: str, dtype: str) -> dict[str, str]:
        """``{id, root}`` of the model that is served under one of an arm's ``names``, or is the
        one of its folder (or hub id) ``model``.

        Raises:
            NotServedError: when there is none; says which command serves it.
        """
        held = asyncio.run(self._models())
        for card in held:
            if card["id"] == names[0]:
                return card
        for card in held:
            if any(os.path.abspath(name) == os.path.abspath(model) for name in card.values()):
                return card
        for card in held:
            if card["id"] in names:
                return card
        served = ", ".join(_plain(card["id"]) for card in held) or "no model"
        raise NotServedError(
            f"{self.address} holds {served}, not {model}; `vllm serve {shlex.quote(model)} "
            f"--served-model-name {names[0]} --dtype {dtype}` serves it"
        )

    def sample(
        self,
        model: str,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str],
        samples: int,
        decoding: Decoding,
        seeds: Sequence[int],
        at_once: int,
    ) -> Iterator[tuple[int, list[Sample]]]:
        """Yield (prompt index, its samples) as they come, ``at_once`` prompts being asked at a
        time. The tokenizer counts tokens where the server does not say which they were.

        Raises:
            UserError: when the server refuses, cannot be reached any more, or answers otherwise
                than the protocol has it.
        """
        # At temperature 0 all answers are the same, and vLLM gives only one of them.
        drawn = 1 if decoding.temperature == 0 else samples
        requests = [
            {
                "model": model,
                "prompt": prompt,
                "n": drawn,
                "seed": seed,
                "max_tokens": decoding.max_tokens,
                "temperature": decoding.temperature,
                "top_p": decoding.top_p,
                **_AS_IT_IS,
            }
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        # One event loop for all: Ctrl-C ends the requests under way, and the server's work on them.
        with asyncio.Runner() as loop:
            answers = self._completed(requests, min(at_once, AT_MOST))
            while (found := loop.run(_next(answers))) is not None:
                i, choices = found
                told = [_sample(choice, tokenizer) for choice in choices]
                yield i, told * (samples // drawn)

    async def _models(self) -> list[dict[str, str]]:
        async with self._client() as client:
            return await self._asked(client, "GET", "/models", None, _cards)

    async def _completed(
        self, requests: Sequence[dict[str, Any]], at_once: int
    ) -> AsyncIterator[tuple[int, list[dict[str, Any]]]]:
        """Yield (index, choices) of each request, whichever is answered first."""
        turns = asyncio.Semaphore(at_once)

        async def complete(i: int, request: dict[str, Any]) -> tuple[int, list[dict[str, Any]]]:
            async with turns:
                choices = await self._asked(
                    client, "POST", "/completions", request, lambda found: _choices(found, request)
                )
            return i, choices

        async with self._client() as client:
            tasks = [asyncio.create_task(complete(i, one)) for i, one in enumerate(requests)]
            try:
                for task in asyncio.as_completed(tasks):
                    yield await task
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _client(self) -> AsyncClient:
        import httpx

        key = os.environ.get("VLLM_API_KEY")
        return httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(ANSWER, connect=CONNECT),
            limits=httpx.Limits(max_connections=AT_MOST),
        )

    async def _asked(
        self, client: AsyncClient, method: str, path: str, body: Any, read: Callable[[Any], T]
    ) -> T:
        """What ``read`` makes of the server's JSON. Tries again where the server cannot be reached,
        is busy, fails, or breaks off; ``read`` raises ValueError for what is no whole answer."""
        import httpx

        for wait in (*WAITS, None):
            try:
                response = await client.request(method, self.address + path, json=body)
            except httpx.ReadTimeout:  # the same would be asked again, and take as long
                raise UserError(
                    f"the server {self.address} has not answered within {ANSWER:g} s; what was "
                    f"answered is kept, {going_on()} (smaller eval.rows ask it less at a time)"
                ) from None
            except httpx.RequestError as error:
                trouble = f"cannot be reached ({_plain(f'{type(error).__name__}: {error}')})"
            else:
                if response.is_success:
                    try:
                        return read(response.json())
                    except (ValueError, RecursionError) as error:
                        trouble = f"gives no whole answer to {method} {path} ({_plain(error)})"
                elif response.status_code >= 500 or response.status_code == _TOO_MANY:
                    trouble = f"fails {method} {path} with {_said(response)}"
                else:
                    raise UserError(
                        f"{self.address} refuses {method} {path} with {_said(response)}"
                        f"{_hint(response.status_code, method)}"
                    )
            if wait is not None:
                await asyncio.sleep(wait)
        raise UserError(
            f"the server {self.address} {trouble}, after {len(WAITS) + 1} tries; what was answered "
            f"is kept, {going_on()}"
        )


async def _next(answers: AsyncIterator[T]) -> T | None:
    return await anext(answers, None)


def _cards(found: Any) -> list[dict[str, str]]:
    """``{id, root}`` of each model in the answer to ``GET /models``."""
    listed = found.get("data") if isinstance(found, dict) else None
    if not isinstance(listed, list):
        raise ValueError("no list of models")
    cards = []
    for card in listed:
        if not isinstance(card, dict) or not isinstance(card.get("id"), str):
            raise ValueError("a model without id")
        root = card.get("root")
        cards.append({"id": card["id"], **({"root": root} if isinstance(root, str) else {})})
    return cards


def _choices(found: Any, request: dict[str, Any]) -> list[dict[str, Any]]:
    """The choices in the answer to ``POST /completions``, by their index."""
    choices = found.get("choices") if isinstance(found, dict) else None
    if not isinstance(choices, list) or not all(isinstance(one, dict) for one in choices):
        raise ValueError("no choices")
    by_index = {one.get("index"): one for one in choices}
    if len(choices) != request["n"] or by_index.keys() != set(range(request["n"])):
        raise ValueError(f"{len(choices)} choices where {request['n']} were asked for")
    for one in choices:
        if not isinstance(one.get("text"), str):
            raise ValueError("a choice without text")
        if one.get("finish_reason") not in ("stop", "length"):
            raise ValueError(f"a choice that ended by {one.get('finish_reason')!r}")
    return [by_index[i] for i in range(request["n"])]


def _sample(choice: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Sample:
    """One choice as sampling here would give it; the end token counts as one."""
    from pipeline.model.decode import Sample

    text, ids = choice["text"], choice.get("token_ids")
    if not isinstance(ids, list):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = [*ids, *([tokenizer.eos_token_id] if choice["finish_reason"] == "stop" else [])]
    return Sample(text, choice["finish_reason"], len(ids))


def _said(response: Response) -> str:
    """The status of a refusal and the server's words for it."""
    try:
        found = response.json()
    except (ValueError, RecursionError):
        found = response.text
    if isinstance(found, dict):
        error = found.get("error", found)
        words = error.get("message", error.get("detail")) if isinstance(error, dict) else error
        found = found if words is None else words
    return f"{response.status_code} ({_plain(found)})"


def _hint(status: int, method: str) -> str:
    if status in (401, 403):
        return "; VLLM_API_KEY is its key"
    if status in (404, 405) and method == "GET":
        return "; does its address end in /v1?"
    return ""


def _plain(words: Any) -> str:
    """A server's words on one line, without what would steer a terminal."""
    text = "".join(c if c.isprintable() else " " for c in str(words))
    return " ".join(text.split())[:300] or "no words"
