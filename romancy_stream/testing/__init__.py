"""For users' own tests. `activity_context` runs an activity that takes a `ctx` without an engine."""

from romancy_stream.testing.activities import TestedAttempt, activity_context

__all__ = ["TestedAttempt", "activity_context"]
