"""Open instances by version of their workflow, on each database."""

from __future__ import annotations

from romancy_stream.store.port import OpenVersion
from romancy_stream.store.sql import SqlStore
from tests.store.writing import committed, instance, owned


async def test_open_instances_are_counted_by_version(store: SqlStore) -> None:
    assert await store.open_versions() == []
    given = [
        ("checkout", "1", "running", None),
        ("checkout", "1", "waiting_for_timer", "the code differs"),
        ("checkout", "1", "completed", None),
        ("checkout", "2", "waiting_for_event", None),
        ("checkout", None, "compensating", None),
        ("checkout", "3", "failed", None),
        ("Checkout", "1", "waiting_for_message", None),
        ("ship", "V", "running", None),
        ("ship", "v", "running", None),
        ("ended", None, "cancelled", None),
    ]
    instances = [
        instance(
            f"o-{n}",
            workflow=workflow,
            version=version,
            status=status,
            parked=parked,
            finished_us=5 if status in ("completed", "failed", "cancelled") else None,
        )
        for n, (workflow, version, status, parked) in enumerate(given)
    ]
    await committed(store, await owned(store, 0), instances=instances)
    assert await store.open_versions() == [
        OpenVersion("Checkout", "1", 1, 0),
        OpenVersion("checkout", None, 1, 0),
        OpenVersion("checkout", "1", 2, 1),
        OpenVersion("checkout", "2", 1, 0),
        OpenVersion("ship", "V", 1, 0),
        OpenVersion("ship", "v", 1, 0),
    ]
