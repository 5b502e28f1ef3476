"""What a queue may have of a worker process: so many attempts at a time, so many starts in a span of time. Pure: who
asks brings the time.
"""

from __future__ import annotations

from collections import deque

from romancy_stream.queues import QueueOptions, RateLimit


class Window:
    """At most `limit` starts within any span of `per` seconds: stricter than a bucket of tokens, which lets twice as
    many through."""

    def __init__(self, rate: RateLimit) -> None:
        self._per_s = rate.per
        self._starts_s: deque[float] = deque(maxlen=rate.limit)

    def wait_s(self, now_s: float) -> float:
        """Until the next start; 0: now."""
        if len(self._starts_s) < (self._starts_s.maxlen or 0):
            return 0.0
        return max(0.0, self._starts_s[0] + self._per_s - now_s)

    def start(self, now_s: float) -> None:
        self._starts_s.append(now_s)


class Allowance:
    """Of one queue in this process."""

    def __init__(self, options: QueueOptions) -> None:
        self.running = 0
        self._concurrency = options.concurrency
        self._window = None if options.rate_limit is None else Window(options.rate_limit)

    @property
    def limited(self) -> bool:
        return self._concurrency is not None or self._window is not None

    @property
    def full(self) -> bool:
        return self._concurrency is not None and self.running >= self._concurrency

    def wait_s(self, now_s: float) -> float:
        return 0.0 if self._window is None else self._window.wait_s(now_s)

    def begin(self, now_s: float) -> None:
        self.running += 1
        if self._window is not None:
            self._window.start(now_s)

    def end(self) -> None:
        self.running -= 1
