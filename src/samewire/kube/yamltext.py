"""YAML (and JSON) text to plain values. The library is loaded when the first YAML text is read, not before."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

_SEPARATOR = re.compile(r"^---(?:[ \t].*)?$", re.MULTILINE)


def load_yaml(text: str) -> Any:
    """The value of one document. Raises ValueError with the place of the fault, never with the content."""
    if text.lstrip().startswith("{"):
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            pass  # YAML in flow style also begins so
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return yaml.load(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" in line {mark.line + 1}" if mark is not None else ""
        raise ValueError(f"{error.problem}{place}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error) or "nested too deeply") from None


def split_documents(text: str) -> Iterator[tuple[int, str]]:
    """The documents of a file with the number of their first line, apart from empty ones.

    Split before parsing, so that one that is no YAML does not hide the others.
    """
    if text.lstrip().startswith("{"):
        yield 1, text
        return
    start, line = 0, 1
    for found in (*_SEPARATOR.finditer(text), None):
        document = text[start : found.start() if found else len(text)]
        if document.strip():
            yield line, document
        if found:
            line += document.count("\n")
            start = found.end()
