"""The store of payloads is away, empty or slow while a whole process works with it: everybody waits, nobody loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from sqlalchemy import text

from romancy_stream import (
    ActivityContext,
    App,
    Encryption,
    PayloadError,
    Payloads,
    RetryPolicy,
    StoreUnavailableError,
    TerminalError,
    WorkflowContext,
    WorkflowFailedError,
)
from romancy_stream.engine.commit import ActivityKey, RecordedResult
from tests.store.writing import recorded
from tests.support import eventually

SECRET = "the-secret"
KEYS = {"k1": b"1" * 32, "k2": b"2" * 32}
PATIENCE_S = 90


class Vault:
    """A dict that can be away. `refused` counts how often that was noticed, by what was asked. `leaves_after`: so many
    blobs it takes before it goes away."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.away = False
        self.leaves_after: int | None = None
        self.refused = {"put": 0, "get": 0}

    async def put(self, blobs: Mapping[str, bytes]) -> None:
        self._enter("put")
        self.blobs.update(blobs)
        self.away = self.away or len(self.blobs) == self.leaves_after

    async def get(self, names: Sequence[str]) -> Mapping[str, bytes]:
        self._enter("get")
        return {name: self.blobs[name] for name in names if name in self.blobs}

    def _enter(self, what: str) -> None:
        if self.away:
            self.refused[what] += 1
            raise StoreUnavailableError("the vault is away")


def make_app(folder: Path, payloads: Payloads) -> App:
    return App("kept", broker=f"embedded://{folder / 'log'}", database=f"sqlite:///{folder / 'db'}", payloads=payloads)


@pytest.fixture
def vault() -> Vault:
    return Vault()


@pytest.fixture
def app(tmp_path: Path, vault: Vault) -> App:
    return make_app(tmp_path, Payloads(store=vault, threshold_bytes=1))


async def test_the_engine_waits_for_its_vault_and_comes_back(
    app: App, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("romancy_stream.runtime.patience.STORE_PATIENCE_S", 0.2)

    @app.workflow
    async def echo(ctx: WorkflowContext, said: str) -> str:
        return said * 2

    async with app:
        handle = await app.start(echo, SECRET)
        assert await handle.result(PATIENCE_S) == SECRET * 2
        sealed = await app._sealer.seal(b'"again"', "an input")
        vault.away = True
        with pytest.raises(StoreUnavailableError):
            await app.start(echo, "a client hears of it")
        with pytest.raises(StoreUnavailableError):
            await handle.result(PATIENCE_S)
        command = app._command("echo", sealed, echo.options)
        await app._send(command, command.subject or "")
        await eventually(lambda: vault.refused["get"] >= 8)  # several times let go and come back
        vault.away = False
        assert await app.handle(command.subject or "", echo).result(PATIENCE_S) == "againagain"
        assert not await app.dead_letters()


async def test_an_attempt_waits_for_its_arguments(app: App, vault: Vault) -> None:
    @app.activity(retry=RetryPolicy.none(), timeout=5)
    async def shout(said: str) -> str:
        return said.upper()

    @app.workflow
    async def loud(ctx: WorkflowContext, said: str) -> str:
        return await shout(said)

    vault.leaves_after = 2  # the input and the arguments
    async with app:
        handle = await app.start(loud, SECRET)
        await eventually(lambda: vault.refused["get"] >= 3)
        vault.away = False
        assert await handle.result(PATIENCE_S) == SECRET.upper()


async def test_an_attempt_waits_with_its_result(app: App, vault: Vault) -> None:
    runs = 0

    @app.activity(retry=RetryPolicy.none(), timeout=60)
    async def shout(said: str) -> str:
        nonlocal runs
        runs += 1
        vault.away = True
        return said.upper()

    @app.workflow
    async def loud(ctx: WorkflowContext, said: str) -> str:
        return await shout(said)

    async with app:
        handle = await app.start(loud, SECRET)
        await eventually(lambda: vault.refused["put"] >= 2)
        vault.away = False
        assert await handle.result(PATIENCE_S) == SECRET.upper()
    assert runs == 1  # an attempt that left no other trace is not done again


async def test_a_transaction_does_not_wait_for_ever(app: App, vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds locks: it is rolled back, and done again."""
    monkeypatch.setattr("romancy_stream.runtime.attempt.VAULT_PATIENCE_S", 0.3)

    @app.activity(retry=RetryPolicy.fixed(10, 0.1))
    async def note(ctx: ActivityContext, said: str) -> str:
        await ctx.session.execute(text("CREATE TABLE IF NOT EXISTS notes (said TEXT)"))
        await ctx.session.execute(text("INSERT INTO notes VALUES (:said)"), {"said": said})
        vault.away = ctx.attempt == 1
        ctx.publish("nobody", said)
        return said.upper()

    @app.workflow
    async def noting(ctx: WorkflowContext, said: str) -> str:
        return await note(said)

    async with app:
        handle = await app.start(noting, SECRET)
        await eventually(lambda: vault.refused["put"] >= 2)

        async def failed() -> bool:
            return any(e.kind == "activity.attempt_failed" for e in await app._store.history(handle.instance_id))

        await eventually(failed)
        vault.away = False
        assert await handle.result(PATIENCE_S) == SECRET.upper()
        async with app._node.store.db.engine.connect() as connection:  # type: ignore[union-attr]
            assert (await connection.execute(text("SELECT count(*) FROM notes"))).scalar() == 1


async def test_the_engine_reads_what_another_run_and_a_claimed_key_refer_to(app: App, vault: Vault) -> None:
    @app.activity(retry=RetryPolicy.none())
    async def shout(ctx: ActivityContext, said: str) -> str:
        """Somebody's transaction was first, whose report never came; then there is another attempt, which fails."""
        sealed = await app._sealer.seal(f'"{said.upper()}"'.encode(), "a result")
        key = ActivityKey(ctx.info.instance_id, ctx.info.run, ctx.info.activity_id)
        async with app._store.db.engine.begin() as connection:  # type: ignore[attr-defined]
            await recorded(connection, RecordedResult(key, 1, "completed", sealed, "another", 1))
        raise TerminalError("too late")

    @app.workflow
    async def loud(ctx: WorkflowContext, said: str) -> str:
        heard = await shout(said)
        await ctx.sleep(0.1)
        return heard

    async with app:
        handle = await app.start(loud, SECRET)
        assert await handle.result(PATIENCE_S) == SECRET.upper()
        [at] = [entry.seq for entry in await app.history(handle.instance_id) if entry.kind == "timer.fired"]
        fork = await app.fork(handle.instance_id, at=at)
        assert await fork.result(PATIENCE_S) == SECRET.upper()
        kinds = [entry.kind for entry in await app.history(fork.instance_id)]
        assert "workflow.parked" not in kinds


async def test_a_worker_without_the_key_leaves_the_work_to_one_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("romancy_stream.runtime.attempt.UNREADABLE_PAUSE_S", 0.1)

    def with_keys(*names: str) -> App:
        app = make_app(tmp_path, Payloads(codec=Encryption({name: KEYS[name] for name in names})))

        @app.activity(retry=RetryPolicy(max_attempts=None))
        async def shout(said: str) -> str:
            return said.upper()

        @app.workflow
        async def loud(ctx: WorkflowContext, said: str) -> str:
            return await shout(said)

        return app

    async with with_keys("k1", "k2").running(roles=["engine"]) as app:
        async with with_keys("k1").running(roles=["worker"]):
            handle = await app.start_by_name("loud", SECRET)

            async def told() -> bool:
                errors = [each.error for each in await app.activities(handle.instance_id) if each.error]
                return any("cannot be read" in each["message"] and "'k2'" in each["message"] for each in errors)

            await eventually(told)
        async with with_keys("k1", "k2").running(roles=["worker"]):
            assert await handle.result(PATIENCE_S) == SECRET.upper()
        async with with_keys("k1").client() as client:
            with pytest.raises(PayloadError, match="'k2'"):
                await client.handle(handle.instance_id).result(PATIENCE_S)


async def test_a_result_that_looks_sealed_fails_the_activity(tmp_path: Path) -> None:
    app = App("plain", broker=f"embedded://{tmp_path / 'log'}", database=f"sqlite:///{tmp_path / 'db'}")

    @app.activity(retry=RetryPolicy.none())
    async def cheat() -> dict[str, str]:
        return {"$romancy": "blob", "name": "0" * 64}

    @app.workflow
    async def cheated(ctx: WorkflowContext) -> dict[str, str]:
        return await cheat()

    async with app:
        with pytest.raises(WorkflowFailedError, match=r"\$romancy"):
            await (await app.start(cheated)).result(PATIENCE_S)
