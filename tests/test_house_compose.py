"""docker-compose.yml and tools/services must describe the same servers: what works on one must work on the other."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / "tools"))

from _services import settings  # noqa: E402

ROMANCY_VARIABLES = {"ROMANCY_BROKER", "ROMANCY_DATABASE"}


@pytest.fixture(scope="module")
def compose() -> Mapping[str, Any]:
    loaded: Mapping[str, Any] = yaml.safe_load((REPO / "docker-compose.yml").read_text())
    return loaded


def _tag(service: Mapping[str, Any]) -> tuple[str, str]:
    name, _, tag = service["image"].partition(":")
    return name, tag


def test_servers_are_ones_that_tools_services_knows(compose: Mapping[str, Any]) -> None:
    servers = set(compose["services"]) - {"worker"}
    assert servers == {"kafka", "postgres"}
    assert servers <= set(settings.SERVICES)


def test_kafka_is_the_version_that_the_tests_prefer(compose: Mapping[str, Any]) -> None:
    assert _tag(compose["services"]["kafka"]) == ("apache/kafka", settings.KAFKA_VERSIONS["kafka"][0])


def test_the_maven_file_names_the_same_kafka() -> None:
    assert f"<kafka.version>{settings.KAFKA_VERSIONS['kafka'][0]}<" in (REPO / "tools/kafka/pom.xml").read_text()


def test_postgres_major_is_supported(compose: Mapping[str, Any]) -> None:
    name, tag = _tag(compose["services"]["postgres"])
    assert name == "postgres"
    assert int(tag) == settings.POSTGRES_IMAGE_MAJOR >= settings.POSTGRES_MIN_MAJOR


def test_kafka_settings_are_the_shared_ones(compose: Mapping[str, Any]) -> None:
    given = compose["services"]["kafka"]["environment"]
    wanted = {"KAFKA_" + key.replace(".", "_").upper(): value for key, value in settings.KAFKA_SHARED.items()}
    assert {key: given.get(key) for key in wanted} == wanted


def test_postgres_settings_are_the_shared_ones(compose: Mapping[str, Any]) -> None:
    command = compose["services"]["postgres"]["command"]
    given = dict(part.split("=", 1) for part in command if "=" in part)
    assert given == settings.POSTGRES_SHARED
    environment = compose["services"]["postgres"]["environment"]
    assert (environment["POSTGRES_USER"], environment["POSTGRES_DB"]) == (settings.USER, settings.DATABASE)


def test_worker_is_pointed_at_the_servers_of_the_file(compose: Mapping[str, Any]) -> None:
    services = compose["services"]
    environment = services["worker"]["environment"]
    assert set(environment) == ROMANCY_VARIABLES
    broker, database = urlsplit(environment["ROMANCY_BROKER"]), urlsplit(environment["ROMANCY_DATABASE"])
    assert broker.scheme == "kafka"
    assert f"://{broker.netloc}" in services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert (database.scheme, database.hostname, database.path) == ("postgresql", "postgres", f"/{settings.DATABASE}")
    assert database.password == services["postgres"]["environment"]["POSTGRES_PASSWORD"]


def test_worker_waits_until_its_servers_are_healthy(compose: Mapping[str, Any]) -> None:
    services = compose["services"]
    waits = services["worker"]["depends_on"]
    assert waits == {name: {"condition": "service_healthy"} for name in ("kafka", "postgres")}
    assert all(services[name]["healthcheck"]["test"][0] == "CMD" for name in waits)


def test_ports_are_published_on_the_loopback_address_only(compose: Mapping[str, Any]) -> None:
    published = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_every_named_volume_is_declared(compose: Mapping[str, Any]) -> None:
    used = {mount.split(":")[0] for service in compose["services"].values() for mount in service.get("volumes", [])}
    assert used == set(compose["volumes"])


def test_image_of_the_worker_copies_only_what_is_in_the_repository(compose: Mapping[str, Any]) -> None:
    recipe = compose["services"]["worker"]["build"]["dockerfile_inline"]
    copies = [line.split()[1:-1] for line in recipe.splitlines() if line.startswith("COPY")]
    missing = [source for sources in copies for source in sources if not (REPO / source).exists()]
    assert copies
    assert not missing


def test_docker_accepts_the_file() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not installed")
    command = [docker, "compose", "-f", str(REPO / "docker-compose.yml"), "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
