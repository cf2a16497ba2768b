"""Dataclasses from YAML or JSON: every key, type and value checked, every mistake one sentence."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple

from data.common.errors import UserError, brief, require

Section = typing.TypeVar("Section")

_type_hints = cache(typing.get_type_hints)
#: Types as a message names them.
TYPE_NAMES: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    list: "a list",
    dict: "a mapping of keys",
    type(None): "null",
}


class Limit(NamedTuple):
    """A condition on a value, and its words in a message."""

    holds: Callable[[Any], bool]
    words: str


def at_least(least: float) -> Limit:
    return Limit(lambda value: value >= least, f"{least} or more")


def one_of(*choices: object) -> Limit:
    return Limit(lambda value: value in choices, f"one of {', '.join(map(str, choices))}")


def setting(limit: Limit, default: Any = dataclasses.MISSING) -> Any:
    """A field whose value, or every part of it where it is a tuple, keeps a limit or is None."""
    return dataclasses.field(default=default, metadata={"limit": limit})


def check_limits(section: Any, prefix: str) -> None:
    """Raise UserError naming ``prefix`` and the key of the first value beyond its limit."""
    for spec in dataclasses.fields(section):
        limit, value = spec.metadata.get("limit"), getattr(section, spec.name)
        for one in value if isinstance(value, tuple) else [value]:
            require(
                limit is None or one is None or limit.holds(one),
                f"{prefix}{spec.name} must be {limit and limit.words}, not {brief(one)}",
            )


def dataclass_from(cls: type[Section], content: Any, source: str, prefix: str = "") -> Section:
    """Build a dataclass from a mapping; fields with ``internal`` in their metadata are not keys.

    Args:
        source: the file, as messages name it.
        prefix: of every key in messages, such as ``data.``.

    Raises:
        UserError: naming ``source`` and the key that is missing, unknown, or of a wrong value.
    """
    if not isinstance(content, dict):
        what = prefix.rstrip(".") or "the recipe"
        raise UserError(f"{source}: {what} must be a mapping of keys, not {brief(content)}")
    assert dataclasses.is_dataclass(cls)
    known = keys_of(cls)
    check_keys(content, known, source, prefix)
    hints = _type_hints(cls)
    values = {k: _converted(hints[k], v, source, prefix + k) for k, v in content.items()}
    for name, spec in known.items():
        needed = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        require(name in values or not needed, f"{source}: key {prefix + name!r} is missing")
    section = cls(**values)
    check_limits(section, f"{source}: {prefix}")
    return section


def keys_of(cls: Any) -> dict[str, dataclasses.Field[Any]]:
    """The keys of a section, each with its field."""
    return {f.name: f for f in dataclasses.fields(cls) if not f.metadata.get("internal")}


def check_keys(content: Iterable[Any], known: Iterable[str], source: str, prefix: str) -> None:
    """Raise UserError naming the first key that is not among the ``known`` ones."""
    known = list(known)
    for key in content:
        if key not in known:
            near = nearest(str(key), known)
            raise UserError(f"{source}: unknown key {prefix + str(key)!r}{near}")


def _converted(hint: Any, value: Any, source: str, key: str) -> Any:
    """``value`` as the annotated type, or UserError."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or (value is None and type(None) in options):
        return value
    if origin is types.UnionType:  # of one type with None
        return _converted(options[0], value, source, key)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return dataclass_from(hint, value, source, f"{key}.")
    if origin is tuple:
        return _converted_tuple(options, value, source, key)
    if hint is float and type(value) is int and abs(value) < 1 << 1000:
        return float(value)
    if type(value) is not (origin or hint) or (hint is float and not math.isfinite(value)):
        raise UserError(f"{source}: {key} must be {TYPE_NAMES[origin or hint]}, not {brief(value)}")
    if origin is dict:
        return {str(k): _converted(options[1], v, source, f"{key}.{k}") for k, v in value.items()}
    if isinstance(value, str) and not is_plain(value):
        raise UserError(f"{source}: {key} is no plain text, or too long: {brief(value)}")
    return value


def _converted_tuple(options: tuple[Any, ...], value: Any, source: str, key: str) -> Any:
    listed = isinstance(value, list | tuple)
    if options[1:] == (Ellipsis,):
        options, words = options[:1] * (len(value) if listed else 0), "a list"
    else:
        words = f"a list of {len(options)} values"
    if not listed or len(value) != len(options):
        raise UserError(f"{source}: {key} must be {words}, not {brief(value)}")
    return tuple(_converted(o, v, source, key) for o, v in zip(options, value, strict=True))


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the closest known word, whatever its case, or nothing."""
    plain = {one.casefold(): one for one in known}
    close = difflib.get_close_matches(word.casefold(), plain, n=1)
    return f"; did you mean {plain[close[0]]!r}?" if close else ""


def is_text(value: Any) -> bool:
    """Whether a value is a text that can be written and tokenized.

    JSON can also escape one half of a UTF-16 surrogate pair, which UTF-8 cannot hold.
    """
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def is_plain(text: str) -> bool:
    """Whether a text can name a file, and be written into a manifest."""
    return is_text(text) and "\0" not in text and len(text) < 1024
