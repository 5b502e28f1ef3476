"""Where a dot path leads in parsed JSON, and which texts every database can hold: one answer, for events that are
waited for and for inputs that are searched. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

MISSING: Final = object()
"""The path leads nowhere, or there is no document."""

_INDEX: Final = re.compile(r"0|[1-9]\d{0,8}", re.ASCII)


def is_index(segment: str) -> bool:
    """Whether it takes an element where it meets an array: 0, 7, 12; not 07 or -1."""
    return _INDEX.fullmatch(segment) is not None


def follow(document: Any, segments: Sequence[str]) -> Any:
    """MISSING where that leads nowhere."""
    for segment in segments:
        if isinstance(document, dict):
            document = document.get(segment, MISSING)
        elif isinstance(document, list) and is_index(segment) and int(segment) < len(document):
            document = document[int(segment)]
        else:
            return MISSING
    return document


def storable(text: str) -> bool:
    """False for text with NUL or half a surrogate pair, which not every database can hold or be asked for."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False
