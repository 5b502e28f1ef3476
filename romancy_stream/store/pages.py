"""Pages of the instance list: the limits, the order, and the token that carries a reader from one page to the next.

Values only. A token holds the last row of its page and a fingerprint of the filters, so that a later page continues
at a row and not at a count, and cannot be asked for with another search. It is no secret and grants nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass
from typing import Final

from romancy_stream.engine.fields import storable
from romancy_stream.errors import InvalidPageTokenError
from romancy_stream.store.paths import InputFilter, tagged
from romancy_stream.store.port import InstanceQuery

PAGE_ROWS_MAX: Final = 1000  # rows carry whole inputs and outputs
TOKEN_CHARS_MAX: Final = 4096  # an instance id of 255 characters fits six times
TOKEN_VERSION: Final = 1
INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last row of a page, in the order (started_us, instance_id), both descending."""

    started_us: int
    instance_id: str


def check_limit(limit: int) -> int:
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= PAGE_ROWS_MAX:
        raise ValueError(f"limit is a whole number from 1 to {PAGE_ROWS_MAX}, not {limit!r}")
    return limit


def fingerprint(query: InstanceQuery, filters: tuple[InputFilter, ...]) -> str:
    """The same for queries that differ in nothing but limit and page. `filters` are those of `query.input`."""
    whole = [
        query.workflow_name,
        query.status,
        query.instance_id,
        query.started_after_us,
        query.started_before_us,
        query.parent_id,
        query.parked,
        query.finished_before_us,
        query.finished,
        query.hides,
        [[wanted.path, *tagged(wanted.value)] for wanted in filters],
    ]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:16]


def make_token(cursor: Cursor, filters_fingerprint: str) -> str:
    content = [TOKEN_VERSION, cursor.started_us, cursor.instance_id, filters_fingerprint]
    packed = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def read_token(token: str, filters_fingerprint: str) -> Cursor:
    """Raises InvalidPageTokenError for anything that `make_token` did not make for these filters."""
    match _unpack(token):
        case [version, int(started_us), str(instance_id), str(made_for)] if (
            version == TOKEN_VERSION
            and type(started_us) is int
            and INT64_MIN <= started_us <= INT64_MAX
            and storable(instance_id)
        ):
            if made_for != filters_fingerprint:
                raise InvalidPageTokenError("the page token was made by a query with other filters")
            return Cursor(started_us, instance_id)
    raise InvalidPageTokenError("the page token cannot be read; pass next_page_token of the page before, unchanged")


def _unpack(token: object) -> object:
    if not isinstance(token, str) or len(token) > TOKEN_CHARS_MAX:
        return None
    try:
        packed = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
        return json.loads(packed)
    except (UnicodeError, binascii.Error, ValueError, RecursionError):
        return None
