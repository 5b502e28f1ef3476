"""Paths that an app names are searched by an index from its next start on, whoever asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from romancy_stream import App, ConfigurationError, WorkflowContext


def program(folder: Path, **options: Any) -> App:
    app = App("find", broker=f"embedded://{folder / 'log'}", database=f"sqlite:///{folder / 'state.db'}", **options)

    @app.workflow
    async def order(ctx: WorkflowContext, customer: dict[str, str]) -> str:
        return customer["id"]

    return app


@pytest.mark.parametrize(
    "paths",
    ["customer.id", ["a..b"], [""], ["x" * 256], [f"p{n}" for n in range(21)], [5]],
    ids=["a text", "empty segment", "empty", "long", "many", "no text"],
)
def test_what_cannot_be_searchable(paths: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="searchable"):
        program(tmp_path, searchable=paths)


async def test_instances_of_before_and_after_are_found(tmp_path: Path) -> None:
    async with program(tmp_path) as app:
        for customer in ("c1", "c2"):
            await (await app.start_by_name("order", {"id": customer}, instance_id=f"{customer}-before")).result(
                timeout=60
            )
    async with program(tmp_path, searchable=["id", "id"]) as app:
        await (await app.start_by_name("order", {"id": "c1"}, instance_id="c1-after")).result(timeout=60)
        async with app.client() as client:
            page = await client.find_instances({"id": "c1"})
        assert [each.instance_id for each in page.instances] == ["c1-after", "c1-before"]
        assert app._node is not None
        async with app._node.store.db.reading("count") as connection:
            assert (await connection.execute(text("SELECT count(*) FROM romancy_input_values"))).scalar_one() == 3
