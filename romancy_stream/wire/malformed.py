"""What is wrong with a message, as a value, and the limits that say so. Values only: the codec makes them, the
engine turns them into dead letters, the outside reads the reasons in dead letters and in the contract."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

# Reasons. Stable: they stand in dead letters, and people filter by them.
NOT_A_CLOUDEVENT: Final = "not_a_cloudevent"
BAD_SPECVERSION: Final = "bad_specversion"
MISSING_ATTRIBUTE: Final = "missing_attribute"
BAD_ATTRIBUTE: Final = "bad_attribute"
INVALID_JSON: Final = "invalid_json"
INVALID_UTF8: Final = "invalid_utf8"
NUL_CHARACTER: Final = "nul_character"
PYTHON_REPR: Final = "python_repr"
UNQUOTED_STRING: Final = "unquoted_string"
UNSUPPORTED_FORMAT: Final = "unsupported_format"
TOO_LARGE: Final = "too_large"
TOO_DEEP: Final = "too_deep"
REASONS: Final = frozenset(
    {
        NOT_A_CLOUDEVENT,
        BAD_SPECVERSION,
        MISSING_ATTRIBUTE,
        BAD_ATTRIBUTE,
        INVALID_JSON,
        INVALID_UTF8,
        NUL_CHARACTER,
        PYTHON_REPR,
        UNQUOTED_STRING,
        UNSUPPORTED_FORMAT,
        TOO_LARGE,
        TOO_DEEP,
    }
)

# id, source, type, subject and the names that extensions carry are database keys; two of this length in utf8mb4 fit
# the 3,072 bytes of an InnoDB index.
MAX_ID_CHARS: Final = 255
# The id of a task is made of an instance id, an activity id and two numbers.
MAX_DERIVED_ID_CHARS: Final = 600
# Kafka and its clients stop at 1 MiB for a whole record by default. What a user hands over stays below that by so
# much that it still fits when the engine wraps it ({"args": [...], "kwargs": {}}) and adds its headers.
MAX_DATA_BYTES: Final = 983_040
MAX_WRAPPED_BYTES: Final = 1_000_000
# All attributes together, as values: at most 36 KiB of UTF-8. W3C tracestate needs 512, the names 255 each.
MAX_ATTRIBUTE_CHARS: Final = 9_216
MAX_ATTRIBUTES: Final = 64
# CloudEvents recommends 20.
MAX_NAME_CHARS: Final = 64
# A structured event of MAX_DATA_BYTES whose data is base64, with room for its attributes: more is not even parsed.
MAX_STRUCTURED_BYTES: Final = 1_400_000
# MariaDB's json_valid refuses level 32, PostgreSQL and MySQL go deeper; one level is left for what we wrap around.
MAX_JSON_DEPTH: Final = 30
# {"args": [value]}
WRAPPED_LEVELS: Final = 2
# PostgreSQL's numeric, and with it JSONB, ends at 16,383 digits behind the point. A double ends at exponent 308.
MAX_EXPONENT_DIGITS: Final = 3
MAX_FRACTION_DIGITS: Final = 4_000
MAX_INTEGER_DIGITS: Final = 308


@dataclass(frozen=True, slots=True)
class Malformed:
    """A record that is not a usable event. `message` is for people and free of NUL; source and id are those of the
    event as far as they could be read and stored."""

    reason: str
    message: str
    event_source: str | None = None
    event_id: str | None = None

    def of(self, source: str | None, event_id: str | None) -> Malformed:
        return replace(self, event_source=_storable(source), event_id=_storable(event_id))


def _storable(text: str | None) -> str | None:
    return text if text and len(text) <= MAX_DERIVED_ID_CHARS and "\0" not in text else None
