"""The client of commands that only read. Apart from the commands, since it loads the database's libraries."""

from __future__ import annotations

from romancy_stream.app import App
from romancy_stream.client import BaseClient
from romancy_stream.store.sql import SqlStore


class Reader(BaseClient):
    """The reading half of the client. It opens no broker, so it works beside a process that holds an embedded one."""

    def __init__(self, app: App, store: SqlStore) -> None:
        self.namespace = app.namespace
        self.registry = app.registry
        self._store = store
