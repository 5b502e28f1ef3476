"""Taking partitions over, what a new owner finds, and what an app wrote down about itself."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from romancy_stream.engine.commit import Commit, Mark
from romancy_stream.errors import FencedError, NamespaceError, PartitionCountError
from romancy_stream.store import tables
from romancy_stream.store.port import PartitionSnapshot
from romancy_stream.store.sql import SqlStore
from tests.store.conftest import PARTITIONS, Another
from tests.store.writing import instance, outgoing, owned, rows, timer


async def test_a_fresh_partition_is_empty(store: SqlStore) -> None:
    assert await store.snapshot([2]) == [PartitionSnapshot(2, 0, 0, 0, {}, {}, [], [], {}, [])]


async def test_each_takeover_raises_the_epoch_of_its_partitions_only(store: SqlStore) -> None:
    assert await store.take_over([1, 0], "a") == {0: 1, 1: 1}
    assert await store.take_over([1], "b") == {1: 2}
    assert [(r[0], r[1], r[4]) for r in await rows(store, tables.partitions)] == [
        (0, 1, "a"),
        (1, 2, "b"),
        (2, 0, None),
        (3, 0, None),
    ]


async def test_takeovers_at_the_same_time_give_different_epochs(store: SqlStore, another: Another) -> None:
    rivals = [store, await another(), await another()]
    orders = ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1])
    for _ in range(5):
        taken = await asyncio.gather(*(s.take_over(o, "x") for s, o in zip(rivals, orders, strict=True)))
        assert len({epochs[0] for epochs in taken}) == 3
    assert [r[1] for r in await rows(store, tables.partitions)] == [15] * 4


async def test_an_unknown_partition_cannot_be_taken_nor_read(store: SqlStore) -> None:
    with pytest.raises(PartitionCountError, match=r"\[7\]"):
        await store.take_over([0, 7], "me")
    with pytest.raises(PartitionCountError, match=r"\[7\]"):
        await store.snapshot([0, 7])
    assert [r[1] for r in await rows(store, tables.partitions)] == [0] * 4


# -- a commit of which nobody knows ----------------------------------------------------------------------------
@pytest.mark.parametrize("applied", [False, True])
async def test_whether_a_commit_took_effect_is_told_as_often_as_one_asks(store: SqlStore, applied: bool) -> None:
    marks = await owned(store, 1, 0)
    if applied:
        await store.commit(Commit(marks=marks))
    for _ in range(3):
        assert await store.find_out(marks, "me") is applied
        assert [(r[1], r[2]) for r in await rows(store, tables.partitions)][:3] == [(2, applied), (2, applied), (0, 0)]
    with pytest.raises(FencedError):
        await store.commit(Commit(marks=marks))
    await store.commit(Commit(marks=[replace(mark, epoch=2, commit_no=int(applied)) for mark in marks]))


@pytest.mark.parametrize("owners", [["you"], ["you", "me"], ["you", "you"]])
async def test_who_was_overtaken_does_not_take_the_commit_of_another_for_its_own(
    store: SqlStore, owners: list[str]
) -> None:
    marks = await owned(store, 0, 1)
    for owner in owners:
        epochs = await store.take_over([1], owner)
    await store.commit(Commit(marks=[replace(marks[0], commit_no=0), replace(marks[1], epoch=epochs[1])]))
    before = await rows(store, tables.partitions)
    with pytest.raises(FencedError, match="another process"):
        await store.find_out(marks, "me")
    assert await rows(store, tables.partitions) == before


async def test_finding_out_after_an_answer_that_was_lost_sees_who_came_between(store: SqlStore) -> None:
    marks = await owned(store, 0, 1)
    await store.find_out(marks, "me")
    await store.take_over([0], "you")
    with pytest.raises(FencedError, match="another process"):
        await store.find_out(marks, "me")


async def test_a_new_owner_finds_what_the_former_one_left(store: SqlStore) -> None:
    marks = [replace(mark, position=12) for mark in await owned(store, 0, 1)]
    await store.commit(
        Commit(
            marks=marks,
            offsets=[("shop.commands", 0, 6), ("shop.results", 0, 2), ("shop.commands", 1, 9)],
            watermarks=[(0, 2, 40)],
            instances=[
                instance("o-2", parked="why"),
                instance("o-1", parked=""),
                instance("o-3"),
                instance("o-4", part=1),
            ],
            timers=[timer("b"), timer("a"), timer("c", "o-4", part=1)],
            outbox=[outgoing(10), outgoing(9, to_partition=2, value=None), outgoing(12, part=1)],
        )
    )
    first, second = await store.snapshot([0, 1])
    assert first == PartitionSnapshot(
        part=0,
        epoch=1,
        commit_no=1,
        position=12,
        offsets={"shop.commands": 6, "shop.results": 2},
        watermarks={2: 40},
        timers=[timer("a"), timer("b")],
        outbox=[outgoing(9, to_partition=2, value=None), outgoing(10)],
        held={},
        parked=["o-1", "o-2"],
    )
    assert (second.offsets, second.parked) == ({"shop.commands": 9}, [])
    assert second.timers == [timer("c", "o-4", part=1)]
    assert second.outbox == [outgoing(12, part=1)]


async def test_a_refused_row_holds_back_what_follows_under_its_key(store: SqlStore) -> None:
    marks = await owned(store, 0)
    await store.commit(
        Commit(
            marks=marks,
            outbox=[
                outgoing(1, "a"),
                outgoing(2, "b"),
                outgoing(3, "a"),
                outgoing(4, "a"),
                outgoing(5, "b"),
                outgoing(6, "c"),
            ],
        )
    )
    await store.commit(Commit(marks=[replace(marks[0], commit_no=1)], outbox_refused=[(0, 3, "too large")]))
    (snapshot,) = await store.snapshot([0])
    assert [row.position for row in snapshot.outbox] == [1, 2, 5, 6]
    assert list(snapshot.held) == ["a"]


async def test_preparing_again_changes_nothing(store: SqlStore) -> None:
    before = await rows(store, tables.partitions)
    await store.prepare("shop", PARTITIONS)
    assert await rows(store, tables.partitions) == before


async def test_preparing_at_the_same_time_is_safe(another: Another) -> None:
    stores = [await another() for _ in range(3)]
    await stores[0].migrate()
    await asyncio.gather(*(store.prepare("shop", PARTITIONS) for store in stores))
    assert [row[0] for row in await rows(stores[0], tables.partitions)] == [0, 1, 2, 3]


async def test_another_namespace_or_number_of_partitions_is_refused(store: SqlStore) -> None:
    with pytest.raises(NamespaceError, match="belongs to the app 'shop'"):
        await store.prepare("other", PARTITIONS)
    with pytest.raises(PartitionCountError, match="made for 4 partitions"):
        await store.prepare("shop", PARTITIONS + 1)


async def test_topic_ids_are_kept_and_replaced(store: SqlStore) -> None:
    longest = "t" * 249
    assert await store.topic_ids() == {}
    await store.record_topic_ids({"shop.commands": "id-1", longest: "id-2"})
    await store.record_topic_ids({"shop.commands": "id-3"})
    assert await store.topic_ids() == {"shop.commands": "id-3", longest: "id-2"}


async def test_takeovers_without_a_commit_are_counted_and_a_suspect_is_found_by_the_successor(store: SqlStore) -> None:
    for expected in (0, 1, 2):
        epochs = await store.take_over([0], "me")
        [found] = await store.snapshot([0])
        assert (found.stalls, found.suspect) == (expected, None)
    await store.mark_suspect(0, epochs[0] - 1, "a zombie's")
    await store.mark_suspect(0, epochs[0], "shop.commands/0/7")
    await store.commit(Commit(marks=[Mark(0, epochs[0], 0, 0)]))
    epochs = await store.take_over([0], "me")
    [found] = await store.snapshot([0])
    assert (found.stalls, found.suspect) == (0, "shop.commands/0/7")
    await store.mark_suspect(0, epochs[0], None)
    [found] = await store.snapshot([0])
    assert found.suspect is None
