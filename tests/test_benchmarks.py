"""Each benchmark runs from end to end on a handful of workflows and prints what its readers expect. Says nothing about
how fast anything is."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bursts, measure, population, table, takeover
from benchmarks.rivals import __main__ as rivals
from benchmarks.rivals import staging
from benchmarks.rivals.__main__ import Run
from benchmarks.rivals.installing import run

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
@pytest.mark.parametrize(
    ("mode", "steps", "processes"),
    [((), None, PROCESSES), (("--eager",), "eager", PROCESSES - {"worker"})],
    ids=["apart", "eager"],
)
def test_throughput(mode: tuple[str, ...], steps: str | None, processes: set[str]) -> None:
    facts = printed("benchmarks.throughput", "--workflows", "20", "--runs", "2", "--warm-up", "5", *mode)
    assert (facts["benchmark"], facts["workflows"], facts["runs"]) == ("throughput", 20, 2)
    assert (facts["broker"], facts["database"], facts.get("steps")) == ("kafka", "postgresql", steps)
    for name in ("workflows_per_s", "floor_workflows_per_s", "ratio", "cpu_ratio"):
        assert set(facts[name]) == SPREAD
        assert 0 < facts[name]["min"] <= facts[name]["median"] <= facts[name]["max"]
    for name in ("cpu_ms_per_workflow", "floor_cpu_ms_per_workflow"):
        assert set(facts[name]) == processes | {"total"}
        assert facts[name]["total"]["median"] > 0
    assert ("eager_share_of_steps" in facts) == (steps == "eager")


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.kafka
@pytest.mark.postgres
@pytest.mark.usefixtures("kafka_bootstrap", "postgres_url")
@pytest.mark.parametrize("mode", [(), ("--eager",)], ids=["apart", "eager"])
def test_latency(mode: tuple[str, ...]) -> None:
    facts = printed("benchmarks.latency", "--workflows", "5", "--runs", "2", "--warm-up", "5", *mode)
    assert facts["benchmark"] == "latency"
    for name in ("p50_ms", "p99_ms", "floor_p50_ms", "floor_p99_ms", "p50_ratio"):
        assert set(facts[name]) == SPREAD
        assert facts[name]["min"] > 0


@pytest.mark.parametrize("benchmark", ["throughput", "latency"])
def test_one_process(benchmark: str) -> None:
    where = ("--broker", "embedded", "--database", "sqlite")
    facts = printed(f"benchmarks.{benchmark}", "--workflows", "200", "--runs", "2", "--warm-up", "5", *where)
    assert (facts["broker"], facts["database"]) == ("embedded", "sqlite")
    name = {"throughput": "workflows_per_s", "latency": "p50_ms"}[benchmark]
    assert set(facts[name]) == set(facts[f"floor_{name}"]) == SPREAD


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
    facts = printed("benchmarks.idle", "--broker", "embedded", "--seconds", "1", "--warm-up", "5", "--settle", "1")
    assert set(facts["core_percent"]) == set(facts["wake_ups_per_s"]) == {"client"}


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.kafka
@pytest.mark.postgres
@pytest.mark.usefixtures("kafka_bootstrap", "postgres_url")
def test_engines() -> None:
    facts = printed("benchmarks.engines", "--workflows", "20", "--runs", "2", "--warm-up", "5")
    assert set(facts["one_engine_cpu_ms_per_workflow"]) == PROCESSES | {"total"}
    assert set(facts["cpu_ms_per_workflow"]) == PROCESSES | {"total", "second_engine"}
    assert facts["ratio"]["min"] > 0


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.kafka
@pytest.mark.postgres
@pytest.mark.usefixtures("kafka_bootstrap", "postgres_url")
def test_transactions() -> None:
    facts = printed("benchmarks.transactions", "--activities", "25", "--runs", "2", "--warm-up", "5")
    assert set(facts["cpu_ms_per_activity"]) == PROCESSES | {"total"}
    assert facts["activities_per_s"]["min"] > 0
    assert set(facts["per_core_s_of_worker"]) == SPREAD


def test_transactions_in_one_process() -> None:
    sizes = ("--activities", "25", "--runs", "2", "--warm-up", "5")
    facts = printed("benchmarks.transactions", "--broker", "embedded", "--database", "sqlite", *sizes)
    assert facts["activities_per_s"]["min"] > 0
    assert set(facts["per_core_s_of_client"]) == SPREAD


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.kafka
@pytest.mark.postgres
@pytest.mark.usefixtures("kafka_bootstrap", "postgres_url")
def test_capacity() -> None:
    sizes = ("--workflows", "20", "--singles", "2", "--asleep", "20", "--runs", "2", "--warm-up", "5")
    facts = printed("benchmarks.capacity", *sizes)
    for name in ("cpu_ms", "one_at_a_time_cpu_ms"):
        assert set(facts[name]["per_step"]) == set(facts[name]["per_start"]) == PROCESSES | {"total"}
    written = {f"postgresql_{each}" for each in ("tables", "indexes", "log")} | {"kafka"}
    assert set(facts["bytes"]["per_step"]) == written
    assert min(facts["bytes"]["per_step"][each] for each in ("kafka", "postgresql_log")) > 100
    assert facts["dense_postgresql_bytes"]["per_step"]["tables"] > 100
    assert facts["memory_bytes"]["engine_at_start"] > 0
    assert set(facts["listener_cpu_ms_per_workflow"]) == SPREAD
    assert facts["one_partition_workflows_per_s"]["min"] > 0


@pytest.mark.parametrize(
    ("asked", "said"), [(("--database", "postgresql"), "--database sqlite"), (("--eager",), "without --eager")]
)
def test_what_does_not_go_with_the_embedded_broker(asked: tuple[str, ...], said: str) -> None:
    command = [sys.executable, "-m", "benchmarks.throughput", "--broker", "embedded", *asked]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 2
    assert said in done.stderr


def test_percentiles_and_spread() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert measure.percentile(values, 0.5) == 50
    assert measure.percentile(values, 0.99) == 99
    assert measure.percentile([3.0], 0.99) == 3
    assert measure.spread([3, 1, 2]) == {"median": 2, "min": 1, "max": 3}


def test_a_line_through_points_of_each_turn() -> None:
    points = {steps: bursts.Bursts() for steps in (1, 3, 10)}
    for begin, slope in ((2.0, 0.5), (4.0, 1.5)):
        for steps, each in points.items():
            each.cpu_ms.append({"engine": begin + slope * steps, "worker": slope * steps})
    fitted = bursts.lines(points)
    assert fitted["at_0"]["engine"] == {"median": 3, "min": 2, "max": 4}
    assert fitted["slope"]["engine"] == fitted["slope"]["worker"] == {"median": 1, "min": 0.5, "max": 1.5}
    assert fitted["slope"]["total"] == {"median": 2, "min": 1, "max": 3}
    assert set(points[1].cpu_ms[0]) == {"engine", "worker"}


def test_two_sides_are_compared_pair_by_pair() -> None:
    ours, other = (bursts.Bursts(per_s=per_s, cpu_ms=[{"engine": 1}, {"engine": 2}]) for per_s in ([4, 9], [2, 3]))
    facts = bursts.beside(ours, other, "floor")
    assert facts["ratio"] == {"median": 2.5, "min": 2, "max": 3}
    assert facts["cpu_ratio"] == {"median": 1, "min": 1, "max": 1}
    assert facts["floor_workflows_per_s"]["max"] == 3


def test_cpu_time_of_processes_that_come_and_go() -> None:
    spent = {"here": {7: 1.0, 8: 2.0}}
    meter = measure.CpuMeter({"here": lambda: []})
    assert meter.since(spent) == {"here": 0}
    assert measure.cpu_s(2**30) == 0


# -- other engines -------------------------------------------------------------------------------------------------
def runs(*values: float) -> list[Run]:
    return [Run({"seconds": value}, {"client": value, "engine": 2 * value}) for value in values]


def test_a_ratio_is_of_a_pair_of_runs() -> None:
    facts = rivals.compared(runs(1, 4, 3), runs(2, 2, 1), all_cpu=True)
    assert facts["seconds"] == {"median": 3, "min": 1, "max": 4}
    assert facts["rival_seconds"] == {"median": 2, "min": 1, "max": 2}
    assert facts["seconds_ratio"] == {"median": 2, "min": 0.5, "max": 3}
    assert facts["cpu_ms"]["max"] == 12
    assert facts["cpu_ms_ratio"] == facts["seconds_ratio"]
    assert facts["rival_cpu_ms_by_process"]["engine"] == {"median": 4, "min": 2, "max": 4}


def test_cpu_time_that_is_not_known_or_too_little_to_count_has_no_ratio() -> None:
    assert not [name for name in rivals.compared(runs(1), runs(2), all_cpu=False) if name.startswith("cpu")]
    assert "cpu_ms_ratio" not in rivals.compared(runs(1), [Run({"seconds": 2}, {"client": 0})], all_cpu=True)


def test_a_rival_that_is_not_to_be_had_says_so_and_the_next_has_its_turn(capsys: pytest.CaptureFixture[str]) -> None:
    def missing() -> Iterator[dict[str, Any]]:
        run([sys.executable, "-c", "print('one'); exit('no such package')"])
        yield {}

    def ended() -> Iterator[dict[str, Any]]:
        yield {"workload": "burst 1"}
        raise RuntimeError("a benchmark process ended:\nTraceback\nValueError: why\n")

    for name, lines in (("dbos", missing), ("edda", ended)):
        rivals.report(name, lines)
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["rival"] for line in said] == ["dbos", "edda", "edda"]
    assert said[0]["unavailable"].endswith(" failed: no such package")
    assert said[1]["workload"] == "burst 1"
    assert said[2]["failed"] == "ValueError: why"


def test_programs_of_rivals_are_no_dependencies_of_ours() -> None:
    needed = (REPO / "pyproject.toml").read_text(encoding="utf-8")
    for rival in staging.RIVALS.values():
        names = [package.partition("==")[0].partition("[")[0] for package in rival.packages.pypi]
        assert all("==" in package for package in rival.packages.pypi)
        assert not [name for name in names if f'"{name}' in needed and name != "uvloop"]


def test_processes_of_postgres_that_count() -> None:
    assert staging.serves("postgres: romancy bench_dbos_1 127.0.0.1(5) idle", ("bench_dbos_1",))
    assert not staging.serves("postgres: romancy bench_dbos_12 127.0.0.1(5) idle", ("bench_dbos_1",))
    assert staging.serves("postgres: checkpointer ", ("bench_dbos_1",))


def test_configuration_of_temporal_names_each_port_once() -> None:
    ports = staging.free_ports(8)
    names = {"temporal": "one", "visibility": "two"}
    config = staging.temporal_config("postgresql://me@127.0.0.1:5432/x", names, ports)
    services = config["services"].values()
    assert sorted(port for s in services for port in (s["rpc"]["grpcPort"], s["rpc"]["membershipPort"])) == sorted(
        ports
    )
    assert max(ports) < 2**15
    stores = config["persistence"]["datastores"]
    assert {name: stores[name]["sql"]["databaseName"] for name in names} == names


def test_programs_of_rivals_need_nothing_of_ours() -> None:
    """Each program imports nothing of ours but what needs the standard library alone."""
    harmless = ("benchmarks.driving", "benchmarks.loops", "benchmarks.settings", "benchmarks.rivals.programs.")
    folder = REPO / "benchmarks" / "rivals" / "programs"
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                ours = node.module.split(".")[0] in ("benchmarks", "romancy_stream")
                assert not ours or node.module in harmless or node.module.startswith("benchmarks.rivals.programs."), (
                    path
                )


# -- tables --------------------------------------------------------------------------------------------------------
def spread(median: float) -> dict[str, float]:
    return {"median": median, "min": median / 2, "max": median * 2}


def test_a_table_puts_the_other_side_and_the_ratio_beside_ours() -> None:
    line = {
        **{"benchmark": "throughput", "broker": "kafka", "workflows": 9, "runs": 2, "machine": {"cores": 2}},
        **{"floor_workflows_per_s": spread(2000), "workflows_per_s": spread(1000), "ratio": spread(0.5)},
        **{"cpu_ms_per_workflow": {"engine": spread(1)}, "floor_cpu_ms_per_workflow": {"engine": spread(0.25)}},
        "series": [1, 2],
    }
    assert table.heading(line) == "throughput 9 kafka"
    assert table.rows(line) == [
        ("workflows_per_s", "1,000 (500 to 2,000)", "2,000 (1,000 to 4,000)", "0.5 (0.25 to 1)"),
        ("cpu_ms_per_workflow engine", "1 (0.5 to 2)", "0.25 (0.125 to 0.5)", ""),
    ]


@pytest.mark.parametrize("other", table.OTHERS)
def test_a_table_knows_what_an_other_side_is_called(other: str) -> None:
    line = {"benchmark": "throughput", "steps": "eager", "per_s": 4, f"{other}_per_s": 2, "per_s_ratio": 2}
    assert table.heading(line) == "throughput eager"
    assert table.rows(line) == [("per_s", "4", "2", "2")]


def test_a_table_shows_what_only_one_side_has() -> None:
    line = {"benchmark": "rivals", "cpu": {"client": spread(4)}, "rival_cpu": {"worker": spread(8)}, "seconds": 1.5}
    assert table.rows(line) == [
        ("cpu client", "4 (2 to 8)", "", ""),
        ("rival_cpu worker", "", "8 (4 to 16)", ""),
        ("seconds", "1.5", "", ""),
    ]


def test_a_table_says_what_is_missing() -> None:
    given = ['{"benchmark": "rivals", "rival": "temporal", "unavailable": "go is not installed"}\n', "\n"]
    assert list(table.table(table.parsed(given)))[1:] == ["rivals temporal: unavailable: go is not installed"]
