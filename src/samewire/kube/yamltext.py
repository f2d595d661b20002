"""YAML (and JSON) text to plain values. The library is loaded when the first YAML text is read, not before."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import msgspec

MALFORMED: Final = (ValueError, LookupError, AttributeError, RecursionError)
"""What the YAML library lets out beside its own errors: values not of their tag, and what nests too deeply."""
MAX_DEPTH: Final = 200
"""Of lists and mappings within each other; at a hundred times that libyaml's binding runs off its stack."""
_MANY: Final = 100_000
_TAG: Final = "tag:yaml.org,2002:"
_BOM: Final = "\ufeff"
# Behind it there may be a comment, or the document itself. Files of Windows that were put together have marks within.
_SEPARATOR = re.compile(rf"^{_BOM}?---(?:[ \t]*\r?$|[ \t]+#.*$|[ \t]+)", re.MULTILINE)
_INDENT = re.compile(r"^[ ?-]*", re.MULTILINE)


def load_yaml(text: str, first_line: int = 1) -> Any:
    """The value of one document, which begins in that line. Raises ValueError with the place of the fault, never with
    the content.
    """
    if text.lstrip().startswith("{"):
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            pass  # YAML in flow style also begins so
        except RecursionError:
            raise ValueError(_TOO_DEEP) from None
    import yaml

    loader = _loader()
    try:
        if _may_be_deep(text):
            _refuse_deep(yaml.parse(text, Loader=loader))
        value = yaml.load(text, Loader=loader)
        if "*" in text and _spread(value, {}) > max(len(text), _MANY):
            raise ValueError("its aliases stand for too much")
        return value
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" in line {mark.line + first_line}" if mark is not None else ""
        raise ValueError(f"{error.problem}{place}") from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except MALFORMED as error:
        if isinstance(error, ValueError):
            raise
        raise ValueError("holds a value that is not of its tag") from None


_TOO_DEEP: Final = "nested too deeply"


@cache
def _loader() -> Any:
    """YAML as Kubernetes' tools read it, for whom there is no more than JSON has: a date is text, so is the sign for
    a default value (custom resources have a `=` among their choices), and so is 8080:80.
    """
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        def construct_yaml_int(self, node: Any) -> Any:
            return self.construct_yaml_str(node) if ":" in node.value else super().construct_yaml_int(node)

    Loader.add_constructor(f"{_TAG}int", Loader.construct_yaml_int)
    for kind in ("timestamp", "value"):
        Loader.add_constructor(f"{_TAG}{kind}", Loader.construct_yaml_str)
    return Loader


def without_nulls(value: Any) -> Any:
    """A value of JSON or YAML in which null is as absent as in the API."""
    if isinstance(value, dict):
        return {str(key): without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _may_be_deep(text: str) -> bool:
    """False for all that people write: a list or mapping needs a bracket, or a column further to the right."""
    flow, block = text.count("[") + text.count("{"), max(map(len, _INDENT.findall(text)))
    return 2 * (flow + block) > MAX_DEPTH


def _refuse_deep(events: Iterator[Any]) -> None:
    from yaml.events import CollectionEndEvent, CollectionStartEvent

    depth = 0
    for event in events:
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(_TOO_DEEP)


def _spread(value: Any, known: dict[int, int]) -> int:
    """How many values there are where every alias is written out. Raises ValueError for what holds itself."""
    if not isinstance(value, dict | list):
        return 1
    count = known.get(id(value))
    if count is None:
        known[id(value)] = 0
        items = value.values() if isinstance(value, dict) else value
        count = known[id(value)] = 1 + sum(_spread(item, known) for item in items)
    elif not count:
        raise ValueError("holds itself")
    return count


def split_documents(text: str) -> Iterator[tuple[int, str]]:
    """The documents of a file with the number of their first line, apart from empty ones.

    Split before parsing, so that one that is no YAML does not hide the others.
    """
    if text.lstrip(f"{_BOM} \t\r\n").startswith("{") and "\n---" not in text:
        yield 1, text
        return
    start, line = 0, 1
    for found in (*_SEPARATOR.finditer(text), None):
        document = text[start : found.start() if found else len(text)]
        if document.lstrip("\r\n").startswith(_BOM):
            document = document.replace(_BOM, "", 1)
        if any(map(says_something, document.split("\n"))):
            yield line, document
        if found:
            line += document.count("\n")
            start = found.end()


def says_something(line: str) -> bool:
    """Neither blank nor a comment nor a directive."""
    return bool(line.strip()) and not line.lstrip().startswith(("#", "%"))
