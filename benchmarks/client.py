"""The client of the engine, or with `--alone` the whole app in one process: a process under orders (see `driving`)."""

from __future__ import annotations

import argparse
import asyncio

from benchmarks.app import app, three_steps
from benchmarks.driving import obey
from benchmarks.loops import loop_factory
from benchmarks.settings import ANSWER_LIMIT_S, STARTS_AT_ONCE
from romancy_stream.cli.worker import calm_collector
from romancy_stream.client import BaseClient
from romancy_stream.handle import Handle


class EngineDriver:
    """Through the public API, as an application would."""

    def __init__(self, client: BaseClient) -> None:
        self._client = client

    async def one(self) -> None:
        handle = await self._client.start(three_steps, 7)
        assert await handle.result(timeout=ANSWER_LIMIT_S) == 7

    async def burst(self, count: int) -> None:
        handles: list[Handle[int]] = []
        for first in range(0, count, STARTS_AT_ONCE):
            numbers = range(first, min(count, first + STARTS_AT_ONCE))
            handles += await asyncio.gather(*(self._client.start(three_steps, number) for number in numbers))
        results = await asyncio.gather(*(handle.result(timeout=ANSWER_LIMIT_S) for handle in handles))
        assert results == list(range(count))


async def _run(alone: bool) -> None:
    async with app if alone else app.client() as client:
        await obey(EngineDriver(client))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alone", action="store_true", help="engine and worker in this process too")
    options = parser.parse_args()
    if options.alone:
        calm_collector()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_run(options.alone))


if __name__ == "__main__":
    main()
