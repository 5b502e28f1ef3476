"""Where a process of romancy spends its time: what a sampling profiler saw, summed up by what the code is there for.
ARCHITECTURE.md has the table.

    py-spy record --gil --rate 500 --format raw --output samples.raw --pid PID --duration 20
    python -m benchmarks.account samples.raw [microseconds of a workflow]
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Final

# The first name that fits, from the innermost frame outwards, says what a sample is for.
PURPOSES: Final = {
    "records read: decoded and checked": ("decode (", "Processor.on_batch.<locals>.<listcomp>", "read_task ("),
    "what a batch has to know first": ("Processor._prepare", "Processor._needs"),
    "workflow code, its event loop, its arguments and results": ("LiveInstance.deliver",),
    "events and tasks made": (
        "encode_text (",
        "task_for (",
        "task_event (",
        "report_event (",
        "happened (",
        "Batch.send",
    ),
    "history events, folded into state": ("Batch.record", "Batch.start", "apply (", "begin ("),
    "rows of the tables": ("Batch.finish",),
    "the rest of the core: whose it is, what is known, attempts": ("EngineCore.handle",),
    "the commit: arrays, driver, waiting": ("SqlStore.commit", "Processor._commit"),
    "sending, and what is acknowledged": ("Relay.", "Producer.", "EmbeddedBroker.send", "Log.", "Sender."),
    "fetching": ("Fetcher.", "PartitionRecords.", "AIOKafkaConnection.", "EmbeddedBatchSource", "TaskQueue.fetch"),
    "attempts: the worker's queue, the call, its result": ("ActivityWorker.", "Attempt.", "Eager.", "Messages."),
    "clients: starting, waiting, telling": ("Starting.", "ResultHub.", "Handle.result", "EngineDriver"),
    "the rest of the processor": ("Processor.",),
}
REST: Final = "the event loop, and all else"
_NOT_WORK: Final = ("_find_and_load", "Thread._bootstrap")  # imports; other threads


def purpose_of(frames: list[str]) -> str:
    """`frames`: the outermost first."""
    for frame in reversed(frames):
        for purpose, names in PURPOSES.items():
            if frame.startswith(names):
                return purpose
    return REST


def account(samples: str) -> Counter[str]:
    """Of lines "frame;frame;frame count"."""
    found: Counter[str] = Counter()
    for line in samples.splitlines():
        stack, _, count = line.rpartition(" ")
        if "Runner.run" in stack and not any(name in stack for name in _NOT_WORK):
            found[purpose_of(stack.split(";"))] += int(count)
    return found


def main(path: str, of_a_workflow_us: str = "0") -> None:
    found = account(Path(path).read_text("utf-8"))
    for purpose in (*PURPOSES, REST):
        share = found[purpose] / max(1, found.total())
        print(f"{100 * share:5.1f} %  {float(of_a_workflow_us) * share:6.0f} us  {purpose}")


if __name__ == "__main__":
    main(*sys.argv[1:])
