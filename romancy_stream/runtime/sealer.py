"""Seals and opens payloads for those who have no core around them: clients and activity workers. What is kept elsewhere
is written before anything refers to it, and read when it is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from romancy_stream.engine.commit import InstanceRow
from romancy_stream.engine.history import HistoryEvent
from romancy_stream.engine.sealing import PLAIN, Blobs, Sealing, is_sealed, sealed_in
from romancy_stream.errors import PayloadError
from romancy_stream.runtime.vault import NO_VAULT, Vault


@dataclass(frozen=True, slots=True)
class Sealer:
    """Its methods raise PayloadError, PayloadTooLargeError, and StoreUnavailableError where the vault is away."""

    sealing: Sealing = PLAIN
    vault: Vault = NO_VAULT

    async def seal(self, raw: bytes | None, what: str) -> bytes | None:
        """None stays None: no data."""
        if raw is None:
            return None
        [sealed] = await self.seal_all([raw], what)
        return sealed

    async def seal_all(self, raws: Sequence[bytes | None], what: str) -> list[bytes | None]:
        """All, or none is kept."""
        blobs: dict[str, bytes] = {}
        sealed = [None if raw is None else self.sealing.seal(raw, what, blobs) for raw in raws]
        if blobs:
            await self.vault.put(blobs)
        return sealed

    async def open(self, raw: bytes) -> bytes:
        return self.sealing.open(raw, await self.blobs([raw])) if is_sealed(raw) else raw

    async def blobs(self, raws: Iterable[bytes]) -> Blobs:
        """What opening these needs, as far as it is there."""
        names = list(dict.fromkeys(name for raw in raws for name in self.sealing.refs(raw)))
        return await self.vault.get(names) if names else {}

    async def blobs_of(self, history: Iterable[HistoryEvent]) -> Blobs:
        return await self.blobs(raw for event in history for raw in sealed_in(event))

    # -- for people to look at -------------------------------------------------------------------------------------
    async def shown(self, row: InstanceRow) -> InstanceRow:
        """With input and output as they were; what cannot be opened stays as it is."""
        sealed = [raw for raw in (row.input, row.output) if is_sealed(raw)]
        return self._shown(row, await self.blobs(sealed)) if sealed else row

    def listed(self, row: InstanceRow) -> InstanceRow:
        """As `shown`, without reading anything: what is kept elsewhere stays a reference."""
        return self._shown(row, {}) if is_sealed(row.input) or is_sealed(row.output) else row

    def _shown(self, row: InstanceRow, blobs: Blobs) -> InstanceRow:
        return replace(row, input=self._as_it_was(row.input, blobs), output=self._as_it_was(row.output, blobs))

    async def shown_history(self, events: Sequence[HistoryEvent]) -> Sequence[HistoryEvent]:
        """With payloads as they were; what cannot be opened stays as it is."""
        if not any(True for event in events for _ in sealed_in(event)):
            return events
        blobs = await self.blobs_of(events)
        return [self._shown_event(event, blobs) for event in events]

    def _shown_event(self, event: HistoryEvent, blobs: Blobs) -> HistoryEvent:
        if not any(True for _ in sealed_in(event)):
            return event
        attrs: dict[str, Any] = event.attrs
        messages = attrs.get("mailbox", {}).get("messages")
        if messages:
            opened = [{**each, "data": self._text_as_it_was(each["data"], blobs)} for each in messages]
            attrs = {**attrs, "mailbox": {**attrs["mailbox"], "messages": opened}}
        return replace(event, attrs=attrs, payload=self._as_it_was(event.payload, blobs))

    def _text_as_it_was(self, text: str, blobs: Blobs) -> str:
        raw = self._as_it_was(text.encode(), blobs)
        assert raw is not None
        return raw.decode()

    def _as_it_was(self, raw: bytes | None, blobs: Blobs) -> bytes | None:
        if not is_sealed(raw):
            return raw
        try:
            return self.sealing.open(raw, blobs)
        except PayloadError:
            return raw


OPEN = Sealer()
