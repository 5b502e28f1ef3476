"""asyncio keeps tasks and futures in sets, some of one workflow and one of all workflows: their hashes must be the
same on every replay, and not the same in every instance."""

from __future__ import annotations

import asyncio
import gc
import weakref

from romancy_stream.engine.loop import WorkflowLoop, WorkflowTimer, stepping_aside


class Host:
    def timer_started(self, handle: WorkflowTimer) -> None:
        raise AssertionError("no timers here")

    def timer_cancelled(self, handle: WorkflowTimer) -> None:
        raise AssertionError("no timers here")


def a_loop(name: str, host: Host | None = None) -> WorkflowLoop:
    return WorkflowLoop(host or Host(), name)  # type: ignore[abstract]  # the other methods refuse


async def nothing() -> None:
    pass


def numbers_of(name: str) -> list[int]:
    """Hashes in the order of making."""
    loop = a_loop(name)
    with stepping_aside():
        tasks = [loop.create_task(nothing()) for _ in range(3)]
        future = loop.create_future()
        loop.run_until_idle()
        loop.evict()
    return [*map(hash, tasks), hash(future)]


def test_hashes_are_the_same_on_replay() -> None:
    assert numbers_of("order-1/1") == numbers_of("order-1/1")


def test_hashes_rise_in_the_order_of_making() -> None:
    numbers = numbers_of("order-1/1")
    assert numbers == list(range(numbers[0], numbers[0] + 4))


def test_asyncio_knows_a_task_by_the_number_that_it_keeps() -> None:
    loop = a_loop("order-1/1")
    with stepping_aside():
        task = loop.create_task(nothing())
        assert asyncio.all_tasks(loop) == {task}
        asyncio._unregister_task(task)
        assert not asyncio.all_tasks(loop)
        loop.evict()


def test_instances_share_no_hashes() -> None:
    """Else each new task is compared with one of every live instance."""
    seen = [number for n in range(1_000) for number in numbers_of(f"order-{n}/1")]
    assert len(set(seen)) > 0.99 * len(seen)


def test_an_evicted_loop_leaves_nothing_to_the_collector() -> None:
    class Holder(Host):
        loop: WorkflowLoop

    host = Holder()
    host.loop = a_loop("order-1/1", host)
    waiting = asyncio.Event()

    async def wait() -> None:
        await waiting.wait()

    gc.disable()
    try:
        with stepping_aside():
            host.loop.create_task(wait())
            host.loop.run_until_idle()
            host.loop.evict()
        gone = weakref.ref(host)
        del host
        assert gone() is None
    finally:
        gc.enable()
