"""Which partition a key belongs to: the murmur2 of Kafka's Java client, so that every broker of ours, every Java
program and every client that follows it agree. A pure function; the answer may never change."""

from __future__ import annotations

from functools import lru_cache
from struct import unpack_from
from typing import Final

# An instance's id is hashed for each of its messages; the hash of 36 bytes costs 3 us here, a cache hit 0.1 us.
# 32,768 keys of that length take about 6 MB, and more instances than that are not active at one time in one process.
KEY_CACHE_LIMIT: Final = 32_768

_M: Final = 0x5BD1E995
_SEED: Final = 0x9747B28C
_U32: Final = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """The signed 32-bit hash, as Java shows it."""
    length = len(data)
    h = _SEED ^ length
    words = length >> 2
    for k in unpack_from(f"<{words}I", data):
        k = k * _M & _U32
        h = (h * _M & _U32) ^ ((k ^ k >> 24) * _M & _U32)
    rest = length & 3
    if rest:
        h = (h ^ int.from_bytes(data[length - rest :], "little")) * _M & _U32
    h = (h ^ h >> 13) * _M & _U32
    h ^= h >> 15
    return h - (1 << 32) if h >> 31 else h


@lru_cache(maxsize=KEY_CACHE_LIMIT)
def partition_for(key: bytes, partitions: int) -> int:
    """The partition of `key` in a topic of `partitions` partitions."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions
