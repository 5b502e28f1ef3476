"""Each benchmark runs from end to end on a handful of workflows and prints what its readers expect. Says nothing about
how fast anything is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import measure, population, takeover

REPO = Path(__file__).resolve().parents[1]
LIMIT_S = 600
SPREAD = {"median", "min", "max"}
PROCESSES = {"client", "engine", "worker", "broker", "database"}


def printed(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.kafka
@pytest.mark.postgres
@pytest.mark.usefixtures("kafka_bootstrap", "postgres_url")
def test_throughput() -> None:
    facts = printed("benchmarks.throughput", "--workflows", "20", "--runs", "2", "--warm-up", "5")
    assert (facts["benchmark"], facts["workflows"], facts["runs"]) == ("throughput", 20, 2)
    assert (facts["broker"], facts["database"]) == ("kafka", "postgresql")
    for name in ("workflows_per_s", "floor_workflows_per_s", "ratio", "cpu_ratio"):
        assert set(facts[name]) == SPREAD
        assert 0 < facts[name]["min"] <= facts[name]["median"] <= facts[name]["max"]
    for name in ("cpu_ms_per_workflow", "floor_cpu_ms_per_workflow"):
        assert set(facts[name]) == PROCESSES | {"total"}
        assert facts[name]["total"]["median"] > 0


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.kafka
@pytest.mark.postgres
@pytest.mark.usefixtures("kafka_bootstrap", "postgres_url")
def test_latency() -> None:
    facts = printed("benchmarks.latency", "--workflows", "5", "--runs", "2", "--warm-up", "5")
    assert facts["benchmark"] == "latency"
    for name in ("p50_ms", "p99_ms", "floor_p50_ms", "floor_p99_ms", "p50_ratio"):
        assert set(facts[name]) == SPREAD
        assert facts[name]["min"] > 0


@pytest.mark.parametrize("benchmark", ["throughput", "latency"])
def test_one_process(benchmark: str) -> None:
    where = ("--broker", "embedded", "--database", "sqlite")
    facts = printed(f"benchmarks.{benchmark}", "--workflows", "10", "--runs", "2", "--warm-up", "5", *where)
    assert (facts["broker"], facts["database"]) == ("embedded", "sqlite")
    name = {"throughput": "workflows_per_s", "latency": "p50_ms"}[benchmark]
    assert set(facts[name]) == SPREAD


def test_shapes() -> None:
    shapes = ("parallel 5", "sequential 160", "events 5", "timers 5")
    facts = printed("benchmarks.shapes", "--broker", "embedded", "--runs", "1", "--warm-up", "5", "--shapes", *shapes)
    assert facts["benchmark"] == "shapes"
    for shape in shapes:
        assert set(facts[shape]["seconds"]) == SPREAD
    assert set(facts["sequential 160"]["last_steps_to_100th"]) == SPREAD


def test_memory() -> None:
    facts = printed("benchmarks.memory", "--workflows", "30", "--every", "10")
    assert facts["after_workflows"] == [10, 20, 30]
    assert set(facts["rss_mib"]) == set(facts["growth"]) == {"client"}
    assert len(facts["rss_mib"]["client"]) == 3
    assert all(value > 0 for value in facts["rss_mib"]["client"])


def test_population() -> None:
    sizes = ("--small", "3000", "--large", "4000", "--runs", "2", "--calls", "3", "--warm-up", "5")
    facts = printed("benchmarks.population", "--broker", "embedded", *sizes)
    assert (facts["small"], facts["large"]) == (3_000, 4_000)
    for order in population.ORDERS:
        assert set(facts[order]) == {"p50_ms", "small_p50_ms", "ratio"}
        assert facts[order]["p50_ms"]["min"] > 0


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.kafka
@pytest.mark.postgres
@pytest.mark.usefixtures("kafka_bootstrap", "postgres_url")
def test_takeover() -> None:
    facts = printed("benchmarks.takeover", "--workflows", "30", "--runs", "2")
    assert facts["waiting"] == 30
    for name in ("first_progress_ms", "loaded_ms", "killed_to_assigned_s"):
        assert facts[name]["min"] > 0
    assert facts["histories_read"]["max"] <= takeover.WOKEN


@pytest.mark.timeout(LIMIT_S)
def test_idle() -> None:
    facts = printed("benchmarks.idle", "--broker", "embedded", "--seconds", "1", "--warm-up", "5")
    assert set(facts["core_percent"]) == set(facts["wake_ups_per_s"]) == {"client"}


def test_database_and_broker_go_together() -> None:
    command = [sys.executable, "-m", "benchmarks.throughput", "--broker", "embedded", "--database", "postgresql"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 2
    assert "--database sqlite" in done.stderr


def test_percentiles_and_spread() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert measure.percentile(values, 0.5) == 50
    assert measure.percentile(values, 0.99) == 99
    assert measure.percentile([3.0], 0.99) == 3
    assert measure.spread([3, 1, 2]) == {"median": 2, "min": 1, "max": 3}


def test_cpu_time_of_processes_that_come_and_go() -> None:
    spent = {"here": {7: 1.0, 8: 2.0}}
    meter = measure.CpuMeter({"here": lambda: []})
    assert meter.since(spent) == {"here": 0}
    assert measure.cpu_s(2**30) == 0
