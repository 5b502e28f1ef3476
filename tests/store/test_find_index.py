"""How searches by input reach their rows: by the index where the database has one, and whichever way is taken, with the
same pages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy import event, text

from romancy_stream.store import readers as readers_module
from romancy_stream.store.database import Database
from romancy_stream.store.port import InstanceQuery
from romancy_stream.store.readers import Readers
from tests.store.reading import instance, on_every_database, put, readers_on

MANY = 3_000


async def plans(readers: Readers, query: InstanceQuery) -> list[str]:
    """Of the statements that a search sends, as the server explains them."""
    sent: list[tuple[str, Any]] = []

    def note(_c: Any, _u: Any, statement: str, parameters: Any, _x: Any, _m: bool) -> None:
        if "FROM romancy_instances" in statement:
            sent.append((statement, parameters))

    assert isinstance(readers.db, Database)
    engine = readers.db.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        page = await readers.list_instances(query)
    finally:
        event.remove(engine, "before_cursor_execute", note)
    assert len(page.rows) == 1
    async with readers.db.engine.connect() as connection:
        return [
            "\n".join((await connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)).scalars())
            for statement, parameters in sent
        ]


def order(number: int) -> bytes:
    """Long enough for a table that nobody reads as a whole."""
    customer = {"id": f"c{number}", "tier": "gold", "address": "1 Long Road " * 50}
    return json.dumps({"customer": customer, "lines": [{"sku": f"s{number}"}]}).encode()


@pytest.mark.postgres
@pytest.mark.parametrize(
    "filters",
    [{"customer.id": "c7"}, {"lines.0.sku": "s7"}, {"customer.tier": "gold", "customer.id": "c7"}],
    ids=lambda filters: " ".join(filters),
)
async def test_a_rare_value_is_found_by_the_index_of_inputs(postgres_db: str, filters: Mapping[str, Any]) -> None:
    async with readers_on(postgres_db) as readers:
        await put(readers, [instance(f"i{n}", input=order(n), started_us=n) for n in range(MANY)])
        async with readers.db.writing("analyze") as connection:
            await connection.execute(text("ANALYZE romancy_instances"))
        by_input, by_id = await plans(readers, InstanceQuery(input=filters))
        assert "romancy_instances_input" in by_input
        assert "romancy_instances_pkey" in by_id
        assert "Seq Scan" not in by_input + by_id


@pytest.mark.parametrize("few", [0, 7, 1_000])
@on_every_database
async def test_pages_of_a_search_are_the_same_whichever_way_they_are_found(
    database: str, few: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers_module, "FEW", few)
    async with readers_on(request.getfixturevalue(database)) as readers:
        rows = [instance(f"i{n:02}", input=b'{"k": %d}' % (n % 3), started_us=n // 5) for n in range(40)]
        await put(readers, rows)
        found, query = [], InstanceQuery(input={"k": 1}, limit=3)
        while True:
            page = await readers.list_instances(query)
            found.append([row.instance_id for row in page.rows])
            if page.next_page_token is None:
                break
            query = InstanceQuery(input={"k": 1}, limit=3, page_token=page.next_page_token)
        wanted = sorted((r for r in rows if r.input == b'{"k": 1}'), key=lambda r: (r.started_us, r.instance_id))
        ids = [row.instance_id for row in reversed(wanted)]
        assert found == [ids[first : first + 3] for first in range(0, len(ids), 3)]
