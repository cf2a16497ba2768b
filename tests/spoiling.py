"""Spoils sound inputs at random: values, keys or lines of a file, or its bytes."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from typing import Any

import yaml

_nested: Any = []
for _ in range(300):
    _nested = [_nested]

#: Replacements of a value.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 0.5, -0.5, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**30,
    10**400, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf"),
    "", " ", "0", "x", "09:00", "24:00", "null", "NaN", "base", "a" * 5_000,
    "\0", "\ud800", "\u202e\u0301\u0301", "😀", "<think>", "../../..", "/", "a/b", "%s{0}", "\n",
    [], {}, [[]], [{}], {"": ""}, [None], ["a", 1], _nested,
)  # fmt: skip
#: Replacements of bytes, or insertions between them.
PIECES: tuple[bytes, ...] = (
    b"", b"\0", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\r", b"\n", b"\n\n", b"\xed\xa0\x80",
    b"\xe2\x80\xa8", b"\xe2\x80\xae", b"\xcc\x81" * 50, b"\xd9\xa3", b"9" * 5_000, b"NaN",
    b"Infinity", b"-1", b"1e999", b"[" * 20_000, b'{"a":' * 20_000, b"{", b"}", b"[", b"]", b",",
    b":", b'"', b"'", b"#", b"&a ", b"*a", b"!!python/object:os.system ", b"%", b"|", b"\t", b"- ",
    b"<think>", b"</think>", b"<schedule>", b"</schedule>", b"<event>", b"</event>", b"<name>",
    b"</name>", b"<start>", b"09:00", b"24:00", b"BEGIN:VEVENT\n", b"RRULE:FREQ=DAILY\n",
)  # fmt: skip


def spoilt(rng: random.Random, texts: list[bytes], form: str) -> bytes:
    """One of ``texts`` with one to four things wrong; its ``form`` says what can be: ``json``,
    ``jsonl``, ``yaml``, or ``text``, which has no inner structure."""
    content = rng.choice(texts)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        if form == "text" or rng.random() < 0.35:
            content = _spoilt_bytes(rng, content, rng.choice(texts))
        else:
            content = _spoilt_tree(rng, content, form)
    return content


def _spoilt_bytes(rng: random.Random, content: bytes, other: bytes) -> bytes:
    start, at = rng.randint(0, len(content)), rng.randint(0, len(other))
    end = min(len(content), start + rng.choice((0, 1, 1, 2, 8, 40, 400)))
    here = content[start:end]
    if rng.random() < 0.1:
        return content[:start]
    changed = (
        bytes(byte ^ 1 << rng.randrange(8) for byte in here),
        here * rng.choice((0, 2, 3, 50)),
        other[at : at + rng.choice((5, 50, 500))],
        rng.choice(PIECES),
        rng.randbytes(len(here)),
    )
    return content[:start] + rng.choice(changed) + content[end:]


def _spoilt_tree(rng: random.Random, content: bytes, form: str) -> bytes:
    """A line or document with one value, key or element changed; as it was where it cannot be
    read any more."""
    with contextlib.suppress(ValueError, RecursionError, yaml.YAMLError, IndexError):
        if form == "yaml":
            tree = _changed(rng, yaml.safe_load(content))
            text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
            return text.encode(errors="surrogatepass")
        if form == "json":
            return as_json(_changed(rng, json.loads(content)))
        lines = content.splitlines()
        at = rng.randrange(len(lines))
        line = rng.choice((lines[at], rng.choice(lines)))
        lines[at : at + rng.randrange(2)] = [as_json(_changed(rng, json.loads(line)))]
        return b"\n".join(lines) + b"\n"
    return content


def as_json(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def as_lines(rows: Any) -> bytes:
    return b"".join(as_json(row) + b"\n" for row in rows)


def _places(tree: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Every (container, key or index) of a tree."""
    if depth < 40 and isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _places(tree[key], depth + 1)


def _changed(rng: random.Random, tree: Any) -> Any:
    places = list(_places(tree))
    if not places or rng.random() < 0.02:
        return rng.choice(VALUES)
    inside, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind == 0:
        del inside[key]
    elif kind == 1:
        other, its = rng.choice(places)
        inside[key] = json.loads(json.dumps(other[its]))
    elif kind == 2:
        inside[key] = rng.choice(([inside[key]], {"a": inside[key]}, str(inside[key])))
    elif kind == 3 and isinstance(inside, dict):
        inside[rng.choice((f"{key}s", f"{key} ", "new"))] = inside.pop(key)
    elif kind == 4 and type(inside[key]) in (int, float):
        inside[key] *= rng.choice((-1, 0, 10, 1000, 10**9, 0.5))
    else:
        inside[key] = rng.choice(VALUES)
    return tree
