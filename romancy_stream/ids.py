"""Ids that sort by the time they were made."""

from __future__ import annotations

import secrets
import time


def uuid7_hex() -> str:
    """UUID version 7 (RFC 9562) as 32 hexadecimal digits."""
    random = secrets.randbits(74)
    value = (time.time_ns() // 1_000_000) << 80 | 0x7 << 76 | (random >> 62) << 64 | 0b10 << 62 | random & (1 << 62) - 1
    return f"{value:032x}"
