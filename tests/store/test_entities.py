"""What a batch needs to know beyond one instance, read in bulk: entities, what was taken in, other runs, tombstones."""

from __future__ import annotations

from romancy_stream.engine.commit import Commit, Rejection, StoredEntity
from romancy_stream.store.sql import SqlStore
from tests.store.writing import committed, entity, event, instance, item, member, owned, tombstone

MANY = 1500  # more than one statement takes, on databases that take them in portions


async def test_entities_with_members_and_items_in_their_order(store: SqlStore) -> None:
    paid, orders = entity(head=b'{"type": "paid"}', part=3, updated_us=2**50), entity("channel:orders", kind="channel")
    members = [
        member(instance_id="o-1", seq=3, attrs=b'{"match": {"n": 1.50}}'),
        member(instance_id="o-9", seq=1),
        member(instance_id="o-1", ref="wait:2", seq=2, run=7),
    ]
    items = [
        item(10, payload=b"null", at_us=5),
        item(9, payload=b'{"exact": 1.10}', expires_us=2**50, attrs=b'{"id": "e"}'),
        item(2),
    ]
    alone = [member("group:x", "o-1"), member("channel:orders", "o-1")]
    await store.commit(
        Commit(marks=await owned(store, 0), entities=[paid, orders], members=[*members, *alone], items=items)
    )
    found = await store.entities([paid.entity, "unknown", "group:x", "channel:orders", paid.entity, "nul\0"])
    assert found == {
        paid.entity: StoredEntity(paid, [members[1], members[2], members[0]], [items[2], items[1], items[0]]),
        "channel:orders": StoredEntity(orders, [alone[1]], []),
    }
    assert await store.entities([]) == {}
    assert await store.entities(["nul\0"]) == {}


async def test_what_was_taken_in_is_known_by_partition(store: SqlStore) -> None:
    keys = [(n % 3, f"{n:064x}") for n in range(MANY)]
    await store.commit(Commit(marks=await owned(store, 0), intake=[(*key, 1) for key in keys[::2]]))
    asked = [*keys, (1, keys[0][1]), (7, "x")]
    assert await store.taken_in(asked) == set(keys[::2])
    assert await store.taken_in([]) == set()


async def test_histories_of_any_run(store: SqlStore) -> None:
    marks = await owned(store, 0)
    runs = {run: [event("o-1", seq, run=run, at_us=run, payload=b"[1.0]") for seq in (1, 2, 3)] for run in (1, 2, 5)}
    log = [each for of_run in runs.values() for each in of_run]
    await committed(store, marks, history=[*log, event("o-2")], instances=[instance("o-1", run=2), instance("o-2")])
    asked = [("o-1", 5), ("o-1", 1), ("o-1", 3), ("o-2", 1), ("unknown", 1), ("nul\0", 1)]
    found = await store.history_prefixes(asked)
    assert found == {("o-1", 1): runs[1], ("o-1", 5): runs[5], ("o-2", 1): [event("o-2")]}
    assert (await store.histories(["o-1"]))["o-1"] == runs[2]
    assert await store.history_prefixes([]) == {}
    many = await store.history_prefixes([("o-1", run) for run in range(MANY)])
    assert sorted(many) == [("o-1", 1), ("o-1", 2), ("o-1", 5)]


async def test_known_tells_of_the_deleted_too(store: SqlStore) -> None:
    refused = Rejection("o-1", 0, "order", "invalid_input", "bad", b"[]", "/shop", "e-9", 12)
    marks = await owned(store, 0)
    gone = [tombstone("o-1", run=4, event_id="e-4"), tombstone("o-2", at_us=99)]
    marks = await committed(store, marks, deleted=gone)
    again = instance("o-1", run=5, parent_id="p", waiting_for=b'["event paid"]', version="v9")
    await committed(store, marks, instances=[again, instance("o-3")], rejections=[refused])
    known = await store.known(["o-1", "o-2", "o-3", "o-4"])
    assert known.instances == {"o-1": again, "o-3": instance("o-3")}
    assert known.rejections == {"o-1": refused}
    assert known.tombstones == {"o-1": gone[0], "o-2": gone[1]}


async def test_whole_histories_are_of_all_runs_in_their_order(store: SqlStore) -> None:
    log = [event("o-1", seq, run=run) for run in (1, 2, 10) for seq in (1, 2)]
    await committed(store, await owned(store, 0), history=[*log, event("o-2")], instances=[instance("o-1", run=2)])
    assert await store.whole_histories(["o-2", "o-1", "unknown", "nul\0"]) == {"o-1": log, "o-2": [event("o-2")]}
    pages = [page async for page in store.scan_histories(1)]
    assert pages == [{"o-1": log}, {"o-2": [event("o-2")]}]


async def test_a_log_is_read_by_its_numbers_whatever_its_times(store: SqlStore) -> None:
    """Many events of one moment, and a clock that was put back."""
    times = [50, 50, 50, 20, 90, 20, 50, 10]
    log = [event("o-1", seq, at_us=at_us) for seq, at_us in enumerate(times, start=1)]
    shuffled = [log[place] for place in (4, 0, 7, 2, 5, 1, 6, 3)]
    await committed(store, await owned(store, 0), history=shuffled, instances=[instance("o-1")])
    assert await store.histories(["o-1"]) == {"o-1": log}
    assert await store.history_prefixes([("o-1", 1)]) == {("o-1", 1): log}
    assert await store.whole_histories(["o-1"]) == {"o-1": log}
    assert [page async for page in store.scan_histories(1)] == [{"o-1": log}]
    assert await store.history("o-1") == log
