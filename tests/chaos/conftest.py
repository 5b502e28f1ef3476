"""Each test has an app, processes that run it, and a look into its database."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.chaos.processes import PrivateServers


@pytest.fixture
def namespace() -> str:
    return f"c{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def private_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateServers]:
    servers = PrivateServers(tmp_path_factory.mktemp("servers"))
    yield servers
    servers.clean()
