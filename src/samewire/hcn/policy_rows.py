"""How policies are stored: few with their object, many as rows of their own.

One policy more or less of thousands writes its own row, and the object without its policies. An object's row says how
many rows there are beside it: one that is missing is damage, and not a policy less. It says, too, which name was given
last: whose policy has gone, it is not given again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

import msgspec

from samewire.hcn.numbered import Numbered, numbered
from samewire.hcn.policies import Policy
from samewire.hcn.policy_lists import PolicyList, is_long
from samewire.hcn.schema import Endpoint, Kind, Network, Object
from samewire.hcn.switch import Change

POLICIES: Final = """CREATE TABLE policies (
    kind TEXT NOT NULL, id TEXT NOT NULL, number INTEGER NOT NULL, json TEXT NOT NULL,
    PRIMARY KEY (kind, id, number)
) WITHOUT ROWID;"""
PUT: Final = """INSERT OR REPLACE INTO policies
    SELECT ?, ?, json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?)"""
_DELETE: Final = """DELETE FROM policies
    WHERE kind = ? AND id = ? AND number IN (SELECT value FROM json_each(?))"""
_DELETE_ALL: Final = "DELETE FROM policies WHERE kind = ? AND id = ?"

Statement = tuple[str, tuple[str | int | bytes | None, ...]]
Rows = Mapping[tuple[str, str], list[tuple[int, str]]]

_OWNERS: Final = (Endpoint, Network)
"""What has policies."""

_encode = msgspec.json.Encoder().encode


@cache
def _decoder() -> msgspec.json.Decoder[Any]:
    """Made when there is something to read: it takes a millisecond."""
    return msgspec.json.Decoder(Policy)


def _policies(value: Object | None) -> PolicyList:
    return numbered(value.policies if isinstance(value, _OWNERS) else ())


def stored(value: Object | None) -> tuple[Object | None, str | None, int, int]:
    """An object's own row: without the policies that have rows of their own, and how many those are; else the numbers
    of its policies, None for those of a list that is as it was made. Last, the name that was given last, 0 for such a
    list.
    """
    if not isinstance(value, _OWNERS):
        return value, None, 0, 0
    policies = _policies(value)
    as_made = isinstance(policies.numbers, range)
    last_name = 0 if as_made else policies.last_name
    if is_long(policies):
        return msgspec.structs.replace(value, policies=()), None, len(policies), last_name
    return value, None if as_made else _encode(policies.numbers).decode(), 0, last_name


def statements(change: Change) -> Iterator[Statement]:
    """What has to be done to the rows of an object's policies."""
    if not isinstance(change.after or change.before, _OWNERS):  # fifty thousand load balancers
        return
    before, after = _policies(change.before), _policies(change.after)
    was, will = is_long(before), is_long(after)
    owner = change.kind.value, change.id
    if not was and not will:
        return
    if was and not will:
        yield _DELETE_ALL, owner
        return
    gone, new = after.difference(before) if was else ((), tuple(after.pairs()))
    if gone:
        yield _DELETE, (*owner, _encode([number for number, _ in gone]).decode())
    if new:
        yield put(*owner, [(number, _encode(policy).decode()) for number, policy in new])


def put(kind: str, object_id: str, rows: list[tuple[int, str]]) -> Statement:
    """What writes rows: numbers, and policies as JSON text."""
    return PUT, (kind, object_id, _encode(rows).decode())


def restored(
    value: Object, numbers: str | None, apart: int, last_name: int, rows: list[tuple[int, str]]
) -> Object:
    """An object with its policies, of what is stored of them. Raises ValueError, msgspec.MsgspecError."""
    if len(rows) != apart:
        raise ValueError(f"{apart} policies are stored apart, {len(rows)} of them are there")
    if not isinstance(value, _OWNERS):
        return value
    policies: PolicyList
    if rows:
        policies = Numbered(
            [_decoder().decode(text) for _, text in rows], tuple(number for number, _ in rows), last_name
        )
    else:
        policies = Numbered(
            value.policies,
            msgspec.json.decode(numbers, type=tuple[int, ...]) if numbers is not None else None,
            last_name,
        )
        if len(policies.numbers) != len(policies):
            raise ValueError(f"{len(policies)} policies have {len(policies.numbers)} numbers")
    return msgspec.structs.replace(value, policies=policies)


def moved_apart(kind: str, object_id: str, value: dict[str, Any]) -> Statement | None:
    """What moves the policies of a stored object, as JSON, to rows of their own, if they are so many. Raises
    msgspec.MsgspecError.
    """
    if kind not in (Kind.NETWORK.value, Kind.ENDPOINT.value):
        return None
    policies: PolicyList = Numbered(msgspec.convert(value.get("Policies", ()), tuple[Policy, ...]))
    if not is_long(policies):
        return None
    del value["Policies"]
    return put(kind, object_id, [(number, _encode(policy).decode()) for number, policy in policies.pairs()])
