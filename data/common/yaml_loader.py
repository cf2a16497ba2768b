"""YAML that reads as people write it.

1e-4 is a number. no, 17:00, 010 and dates are text, where YAML 1.1 reads false, 1020, 8 and a date.
A key given twice is a mistake.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from data.common.errors import UserError

#: How a plain word of a type is written; any other is text.
_WRITTEN = {
    "null": r"(~|null|Null|NULL|)$",
    "bool": r"(true|True|TRUE|false|False|FALSE)$",
    "int": r"[-+]?(0|[1-9][0-9_]*)$",
    "float": (
        r"[-+]?(([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(inf|Inf))$"
        r"|\.(nan|NaN)$"
    ),
}


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; UserError names the file, and the line where it is known."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f":{where.line + 1}" if where else ""
        problem = getattr(error, "problem", None) or "cannot be read"
        raise UserError(f"{path}{line} is not valid YAML ({problem})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a UTF-8 text file") from None
    except (ValueError, LookupError, OverflowError, RecursionError) as error:  # beyond all measure
        raise UserError(f"{path} cannot be read as YAML ({error})") from None


class _Loader(yaml.SafeLoader):
    """See the module."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"key {key.value!r} is given twice"
                    raise ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
for _kind, _pattern in _WRITTEN.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_pattern), None)
