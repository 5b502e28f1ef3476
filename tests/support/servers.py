"""The test session's hand on tools/services: start what is needed, once, and say so when it cannot be had.

Runs tools/services as a program; a service that only test sessions wanted is stopped when the last of them releases it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).resolve().parents[2] / "tools" / "services"
KEYS = {
    "kafka": "KAFKA_BOOTSTRAP",
    "kafka39": "KAFKA39_BOOTSTRAP",
    "postgres": "POSTGRES_URL",
    "mariadb": "MARIADB_URL",
}
EXIT_UNAVAILABLE = 3
COMMAND_TIMEOUT_S = 1200  # the first start may download a server


class ServiceMissing(Exception):
    """The service cannot be had on this machine; the argument says why."""


def services_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `tools/services ...` on behalf of this process; the caller looks at the exit code."""
    env = {**os.environ, "ROMANCY_SERVICES_FOR_PID": str(os.getpid())}
    command = [sys.executable, str(TOOL), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False, env=env)


def services() -> dict[str, str]:
    """What runs now: KAFKA_BOOTSTRAP, KAFKA39_BOOTSTRAP, POSTGRES_URL, MARIADB_URL, as far as they do."""
    done = services_command("env", "--json")
    if done.returncode:
        raise RuntimeError(f"tools/services env failed:\n{done.stderr}")
    values: dict[str, str] = json.loads(done.stdout)
    return values


def ensure_service(name: str) -> str:
    """Starts the service or reuses the one that runs, and returns its address or URL.

    Raises ServiceMissing when this machine cannot have it, RuntimeError when it is there but does not start.
    """
    done = services_command("start", name)
    if done.returncode == EXIT_UNAVAILABLE:
        raise ServiceMissing(done.stderr.strip())
    if done.returncode:
        raise RuntimeError(f"{name} did not start:\n{done.stderr}")
    return services()[KEYS[name]]


def release_services() -> None:
    done = services_command("release", "--for-pid", str(os.getpid()))
    if done.returncode:
        raise RuntimeError(f"tools/services release failed:\n{done.stderr}")
