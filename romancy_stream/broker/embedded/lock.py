"""One process per folder: an exclusive lock on `broker.lock`. The operating system drops it when the process dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from romancy_stream.errors import BrokerUnavailableError, EmbeddedBrokerInUseError


class FolderLock:
    """Held from construction until `release`. EmbeddedBrokerInUseError: another process has it."""

    def __init__(self, folder: Path) -> None:
        path = folder / "broker.lock"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise BrokerUnavailableError(f"the embedded broker cannot use the folder {folder}: {error}") from error
        try:
            self._take(folder)
        except BaseException:
            os.close(self._fd)
            raise

    def _take(self, folder: Path) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise EmbeddedBrokerInUseError(
                f"another process (pid {holder}) uses the embedded broker in {folder}. It serves one process: stop "
                'the other one, give this app a folder of its own, or run on Kafka (broker="kafka://host:9092"), '
                "which serves any number of processes"
            ) from None
        os.truncate(self._fd, 0)
        os.pwrite(self._fd, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)
