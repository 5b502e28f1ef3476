"""The port behind which payloads are kept that are too large for a message. The engine and the workers read and write
them around what they do; a name is the digest of what it names, so writing twice is writing once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol


class Vault(Protocol):
    """StoreUnavailableError whenever it does not do what it is asked; then it is asked again. Belongs to no event
    loop."""

    async def put(self, blobs: Mapping[str, bytes]) -> None:
        """Returns when they outlive a crash of the machine, as far as the place where they are kept can say."""
        ...

    async def get(self, names: Sequence[str]) -> Mapping[str, bytes]:
        """Those that are there."""
        ...


class _None:
    async def put(self, blobs: Mapping[str, bytes]) -> None:
        raise AssertionError("nothing is sealed into blobs where the app has no store for them")

    async def get(self, names: Sequence[str]) -> Mapping[str, bytes]:
        return {}


NO_VAULT: Final[Vault] = _None()
