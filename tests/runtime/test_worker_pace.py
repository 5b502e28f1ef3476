"""What a worker takes ahead of others: as much as it would begin soon, by what it has seen."""

from __future__ import annotations

from math import inf

import pytest

from romancy_stream.engine.inputs import EagerRoom
from romancy_stream.runtime.worker_pace import FORGETTING, Pace


def seen(pace: Pace, name: str, *took_s: float) -> None:
    for each_s in took_s:
        pace.began(name)
        pace.ended(name, each_s)


def test_a_slow_attempt_counts_at_once_and_fast_ones_by_and_by() -> None:
    pace = Pace(10, {"step"})
    seen(pace, "step", 0.1)
    assert pace.expected_s == {"step": 0.1}
    seen(pace, "step", 2.0)
    assert pace.expected_s == {"step": 2.0}
    seen(pace, "step", 1.0)
    assert pace.expected_s["step"] == pytest.approx(2.0 - 1.0 / FORGETTING)


def test_what_waits_and_what_runs_long_leaves_less() -> None:
    pace = Pace(10, {"short", "long"})
    seen(pace, "short", 0.01)
    seen(pace, "long", 60.0)
    assert pace.spare_s(0.25, []) == pytest.approx(2.5)
    assert pace.spare_s(0.25, [{"short": 50}, {"short": 100}]) == pytest.approx(1.0)
    for _ in range(4):
        pace.began("long")
    pace.began("short")
    assert pace.spare_s(0.25, []) == pytest.approx(1.5)
    assert pace.spare_s(0.25, [{"long": 1}]) < 0


def test_what_nobody_has_seen_yet_may_take_for_ever() -> None:
    pace = Pace(10, {"new"})
    assert pace.spare_s(0.25, [{"new": 1}]) == -inf
    pace.began("new")
    assert pace.spare_s(0.25, []) == pytest.approx(0.25 * 9)


def test_names_that_no_activity_has_are_not_kept() -> None:
    pace = Pace(10, {"step"})
    seen(pace, "from nowhere", 1.0)
    assert not pace.expected_s
    assert pace.spare_s(1.0, []) == 10.0


def test_free_slots_are_for_all_and_what_goes_ahead_for_those_that_are_known() -> None:
    room = EagerRoom("here", {"default"}, 1, 3, 0.1, {"short": 0.04})
    assert not room.take("elsewhere", "short")
    assert room.take("default", "new")
    assert not room.take("default", "new")
    assert [room.take("default", "short") for _ in range(3)] == [True, True, False]


def test_a_limit_of_those_that_go_ahead() -> None:
    room = EagerRoom("here", {"default"}, -5, 2, 100.0, {"short": 0.01})
    assert [room.take("default", "short") for _ in range(3)] == [True, True, False]
