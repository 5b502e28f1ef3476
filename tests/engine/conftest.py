"""Worlds end with their tests."""

from tests.engine.tidying import no_task_is_left, worlds_are_closed

__all__ = ["no_task_is_left", "worlds_are_closed"]
