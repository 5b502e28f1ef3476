"""Encryption and the store of payloads by themselves, and all ways of a client to them, in the test kit."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from romancy_stream import (
    ActivityContext,
    App,
    BlobStore,
    ConfigurationError,
    Encryption,
    PayloadError,
    Payloads,
    PayloadTooLargeError,
    RetryPolicy,
    StoreUnavailableError,
    UpdateFailedError,
    WorkflowContext,
    activity,
    query,
    signal,
    update,
    workflow,
)
from romancy_stream.engine.sealing import is_sealed, put_back
from romancy_stream.payloads import KEY_BYTES, NONCE_BYTES
from romancy_stream.runtime.sealer import Sealer
from romancy_stream.schedule import schedule_id
from romancy_stream.testing import WorkflowEnvironment, dump_history, load_history, replay
from romancy_stream.wire.malformed import MAX_DATA_BYTES

KEY = bytes(range(KEY_BYTES))
OTHER_KEY = bytes(KEY_BYTES)
RAW = '{"name":"Frau Müller","amount":12345678901234567890}'.encode()
SECRET = "the-secret"
HUGE = "x" * MAX_DATA_BYTES


# -- encryption --------------------------------------------------------------------------------------------------------
def test_what_is_encrypted_comes_back_byte_by_byte_and_never_looks_the_same() -> None:
    payloads = Payloads(codec=Encryption({"a": KEY}))
    one, two = (payloads.seal(RAW, "it", {}) for _ in range(2))
    assert one != two
    assert is_sealed(one)
    assert b"ller" not in one
    assert b"ller" not in base64.b64decode(orjson.loads(one)["data"])
    assert payloads.open(one, {}) == payloads.open(two, {}) == RAW


def test_the_form_is_what_the_documentation_says() -> None:
    """Others can read it with the key."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    told = orjson.loads(Payloads(codec=Encryption({"a": KEY})).seal(RAW, "it", {}))
    data = base64.b64decode(told.pop("data"))
    assert told == {"$romancy": "aes-256-gcm", "key": "a"}
    assert AESGCM(KEY).decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], None) == RAW


def test_the_last_key_is_the_current_one_and_another_one_can_be() -> None:
    keys = {"old": OTHER_KEY, "new": KEY}
    assert orjson.loads(Payloads(codec=Encryption(keys)).seal(RAW, "it", {}))["key"] == "new"
    sealed = Payloads(codec=Encryption(keys, current="old")).seal(RAW, "it", {})
    assert orjson.loads(sealed)["key"] == "old"
    assert Payloads(codec=Encryption(keys)).open(sealed, {}) == RAW


def test_a_key_may_be_base64_and_a_new_one_is() -> None:
    text = Encryption.new_key()
    assert text != Encryption.new_key()
    sealed = Payloads(codec=Encryption({"a": text})).seal(RAW, "it", {})
    assert Payloads(codec=Encryption({"a": base64.b64decode(text)})).open(sealed, {}) == RAW


@pytest.mark.parametrize(
    ("keys", "current"),
    [({}, None), ({"a": KEY}, "b"), ({"a": b"short"}, None), ({"a": "not base64!"}, None), ({"a": "c2hvcnQ="}, None)],
)
def test_keys_that_are_none(keys: Any, current: str | None) -> None:
    with pytest.raises(ConfigurationError):
        Encryption(keys, current)


def test_another_key_of_the_same_name_is_noticed() -> None:
    sealed = Payloads(codec=Encryption({"a": KEY})).seal(RAW, "it", {})
    with pytest.raises(PayloadError, match="does not fit key 'a'"):
        Payloads(codec=Encryption({"a": OTHER_KEY})).open(sealed, {})
    with pytest.raises(PayloadError, match="'a', which this process lacks"):
        Payloads(codec=Encryption({"b": KEY})).open(sealed, {})


class Zipped:
    name = "zipped"

    def encode(self, raw: bytes) -> tuple[bytes, Mapping[str, str]]:
        return base64.b16encode(raw), {"how": "badly"}

    def decode(self, data: bytes, details: Mapping[str, str]) -> bytes:
        assert details["how"] == "badly"
        return base64.b16decode(data)


def test_a_codec_of_ones_own_and_what_an_older_one_has_written() -> None:
    before = Payloads(codec=Zipped()).seal(RAW, "it", {})
    now = Payloads(codec=Encryption({"a": KEY}), older_codecs=[Zipped()])
    assert now.open(before, {}) == RAW
    assert orjson.loads(now.seal(RAW, "it", {}))["$romancy"] == "aes-256-gcm"
    with pytest.raises(PayloadError, match="'zipped', which this app does not have; it has aes-256-gcm"):
        Payloads(codec=Encryption({"a": KEY})).open(before, {})


def test_a_codec_cannot_have_a_name_of_ours() -> None:
    codec = Zipped()
    codec.name = "blob"
    with pytest.raises(ConfigurationError):
        Payloads(codec=codec)


# -- the store ---------------------------------------------------------------------------------------------------------
async def test_what_is_large_is_kept_under_the_digest_of_it(tmp_path: Path) -> None:
    payloads = Payloads(store=str(tmp_path / "blobs"), threshold_bytes=len(RAW) - 1)
    blobs: dict[str, bytes] = {}
    sealed = payloads.seal(RAW, "it", blobs)
    name = hashlib.sha256(RAW).hexdigest()
    assert orjson.loads(sealed) == {"$romancy": "blob", "name": name, "bytes": len(RAW)}
    assert blobs == {name: RAW}
    assert payloads.store is not None
    await payloads.store.put(blobs)
    assert [path.name for path in files(tmp_path / "blobs")] == [name]
    assert payloads.refs(sealed) == [name]
    assert payloads.open(sealed, await payloads.store.get([name])) == RAW


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*"))


def test_what_is_small_stays_where_it_is() -> None:
    payloads = Payloads(store="memory://small", threshold_bytes=len(RAW))
    blobs: dict[str, bytes] = {}
    assert payloads.seal(RAW, "it", blobs) == RAW
    assert not blobs


@pytest.mark.parametrize("url", ["memory://here/there", "{}/plain path", "file://{}/url"])
async def test_stores_of_several_sorts(url: str, tmp_path: Path) -> None:
    store = BlobStore(url.format(tmp_path))
    blobs = {hashlib.sha256(data).hexdigest(): data for data in (b"one", b"two", b"three")}
    await store.put(blobs)
    await store.put(blobs)
    assert await store.get([*blobs, "0" * 64]) == blobs
    again = BlobStore(url.format(tmp_path))
    assert await again.get(list(blobs)) == blobs


async def test_what_a_crash_left_of_a_blob_is_written_again(tmp_path: Path) -> None:
    store = BlobStore(tmp_path.as_uri())
    name = hashlib.sha256(b"whole").hexdigest()
    await store.put({name: b"whole"})
    [path] = files(tmp_path)
    path.write_bytes(b"wh")
    await store.put({name: b"whole"})
    assert await store.get([name]) == {name: b"whole"}
    assert files(tmp_path) == [path]


async def test_a_store_that_cannot_be_used_now_is_one_that_is_away(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    store = BlobStore((tmp_path / "file").as_uri())
    with pytest.raises(StoreUnavailableError, match=r"NotADirectoryError|FileExistsError"):
        await store.put({"0" * 64: b""})
    with pytest.raises(StoreUnavailableError):
        await store.get(["0" * 64])


@pytest.mark.parametrize(
    "options",
    [{"store": "nobody-knows://x"}, {"store": "memory://x", "threshold_bytes": 0}, {"threshold_bytes": 1_000_000}],
)
def test_payloads_that_cannot_be(options: Any) -> None:
    with pytest.raises(ConfigurationError):
        Payloads(**options)


class Broken:
    """A store that somebody has written."""

    async def put(self, blobs: Mapping[str, bytes]) -> None:
        raise ZeroDivisionError("in put")

    async def get(self, names: Sequence[str]) -> Mapping[str, bytes]:
        raise StoreUnavailableError("in get")


async def test_a_store_of_ones_own_is_away_whatever_it_raises() -> None:
    store = Payloads(store=Broken()).store
    assert store is not None
    with pytest.raises(StoreUnavailableError, match="ZeroDivisionError: in put"):
        await store.put({})
    with pytest.raises(StoreUnavailableError, match="in get"):
        await store.get([])


def test_an_app_takes_payloads_and_nothing_else() -> None:
    with pytest.raises(ConfigurationError, match="payloads must be"):
        App("wrong", payloads=Encryption({"a": KEY}))  # type: ignore[arg-type]


# -- clients -----------------------------------------------------------------------------------------------------------
@activity
async def undo(text: str, result: str) -> None:
    undone.append((text, result))


@activity(compensate=undo)
async def twice(ctx: ActivityContext, text: str) -> str:
    ctx.publish("news", f"{text} by an activity")
    return text * 2


@activity(retry=RetryPolicy.none())
def plainly(text: str) -> str:
    return text.upper()


undone: list[tuple[str, str]] = []


@workflow
class Desk:
    def __init__(self) -> None:
        self.heard: list[str] = []

    async def run(self, ctx: WorkflowContext, text: str) -> list[str]:
        await ctx.subscribe("news")
        await ctx.subscribe("mine", "direct")
        self.heard += [await twice(text), await plainly(text)]
        self.heard.append((await ctx.receive("news")).data)
        self.heard.append((await ctx.receive("news")).data)
        self.heard.append((await ctx.receive("mine")).data)
        await ctx.wait_condition(lambda: len(self.heard) == 7)
        return self.heard

    @signal
    async def note(self, text: str) -> None:
        self.heard.append(text)

    @update
    async def ask(self, text: str) -> str:
        self.heard.append(text)
        return f"{text}, answered"

    @query
    def last(self, before: str) -> str:
        return before + self.heard[-1]


@workflow
async def echo(ctx: WorkflowContext, text: str) -> str:
    return text


@workflow
async def failing(ctx: WorkflowContext, text: str) -> None:
    await twice(text)
    raise RuntimeError("no")


def make_app(payloads: Payloads | None) -> App:
    app = App("sealed", payloads=payloads)
    for each in (Desk, echo, failing):
        app.include(_registry(each))
    return app


def _registry(defined: Any) -> Any:
    from romancy_stream import Registry, Workflow

    registry = Registry()
    registry.add_workflow(Workflow.of(defined))
    for each in (undo, twice, plainly):
        registry.add_activity(each)
    return registry


def sorts() -> dict[str, Payloads]:
    return {
        "encrypted": Payloads(codec=Encryption({"a": KEY})),
        "kept": Payloads(store="memory://api", threshold_bytes=1),
        "both": Payloads(codec=Encryption({"a": KEY}), store="memory://api", threshold_bytes=1),
    }


every_sort = pytest.mark.parametrize("sort", sorts())


def written(env: WorkflowEnvironment) -> list[bytes]:
    """All that the tables and the broker have of it."""
    tables = env._entered.shell.tables
    found = [row.value or b"" for row in tables.outbox]
    for events in tables.history.values():
        found += [(event.payload or b"") + orjson.dumps(event.attrs) for event in events]
    for row in tables.instances.values():
        found += [row.input or b"", row.output or b""]
    return found


@pytest.mark.parametrize("crashes", ["never", "every-step"])
@every_sort
async def test_whatever_a_client_does_it_sees_what_was_meant(sort: str, crashes: Any) -> None:
    app = make_app(sorts()[sort])
    async with WorkflowEnvironment(app, crashes=crashes) as env:
        handle = await app.start(Desk, SECRET)
        await env.sleep(1)
        await app.publish("news", f"{SECRET} from outside")
        await app.send_to(handle.instance_id, "mine", f"{SECRET} for it")
        await handle.signal(Desk.note, f"{SECRET} noted")
        assert await handle.query(Desk.last, "> ") == f"> {SECRET} noted"
        assert await handle.update(Desk.ask, SECRET) == f"{SECRET}, answered"
        said = [SECRET * 2, SECRET.upper(), f"{SECRET} by an activity", f"{SECRET} from outside", f"{SECRET} for it"]
        assert await handle.result() == [*said, f"{SECRET} noted", SECRET]
        assert not [raw for raw in written(env) if SECRET.encode() in raw]
        assert await handle.query("last", before="") == SECRET


@every_sort
async def test_many_and_by_name(sort: str) -> None:
    app = make_app(sorts()[sort])
    async with WorkflowEnvironment(app) as env:
        handles = await app.start_many(echo, [f"{SECRET} {n}" for n in range(3)])
        assert [await each.result() for each in handles] == [f"{SECRET} {n}" for n in range(3)]
        by_name = await app.start_by_name("echo", SECRET)
        assert await by_name.result() == SECRET
        assert await app.handle(by_name.instance_id).result() == SECRET
        assert not [raw for raw in written(env) if SECRET.encode() in raw]


@every_sort
async def test_compensations_are_called_with_what_was_meant(sort: str) -> None:
    app = make_app(sorts()[sort])
    undone.clear()
    async with WorkflowEnvironment(app) as env:
        handle = await app.start(failing, SECRET)
        await env.sleep(1)
        assert (await handle.get()).status == "failed"
        assert undone == [(SECRET, SECRET * 2)]
        assert not [raw for raw in written(env) if SECRET.encode() in raw]


@every_sort
async def test_schedules_start_with_inputs_that_were_meant(sort: str) -> None:
    app = make_app(sorts()[sort])
    app.schedule("often", echo, SECRET, every=timedelta(minutes=1))
    async with WorkflowEnvironment(app, schedules=True) as env:
        found = await app.get_schedule("often")
        assert found is not None
        instance_id = await app.trigger_schedule("often")
        assert await app.handle(instance_id, echo).result() == SECRET
        await env.sleep(minutes=2)
        page = await app.list_instances(workflow_name="echo")
        assert len(page.instances) == 3
        assert not [raw for raw in written(env) if SECRET.encode() in raw]
        assert await app.get_instance(schedule_id("often")) is not None


@every_sort
async def test_views_show_what_was_meant_as_far_as_it_can_be_read(sort: str) -> None:
    app = make_app(sorts()[sort])
    async with WorkflowEnvironment(app) as env:
        handle = await app.start(echo, SECRET)
        await handle.result()
        instance = await handle.get()
        assert (instance.input, instance.output) == (SECRET, SECRET)
        entries = await app.history(handle.instance_id)
        assert [entry.payload for entry in entries] == [SECRET, SECRET]
        [listed] = (await app.list_instances()).instances
        if sort == "encrypted":
            assert (listed.input, listed.output) == (SECRET, SECRET)
        else:
            assert listed.input["$romancy"] == "blob"  # a list reads no store

        env._entered.shell.tables.blobs.clear()
        broken = Payloads(codec=Encryption({"b": KEY}), store=None if sort == "encrypted" else "memory://api")
        app._sealer = Sealer(broken, app._sealer.vault)
        shown = await handle.get()
        assert "$romancy" in shown.input
        assert all("$romancy" in entry.payload for entry in await app.history(handle.instance_id))
        with pytest.raises(PayloadError):
            await handle.result()


@every_sort
async def test_histories_of_sealed_payloads_are_replayed(sort: str, tmp_path: Path) -> None:
    app = make_app(sorts()[sort])
    async with WorkflowEnvironment(app) as env:
        handle = await app.start(echo, SECRET)
        await handle.result()
        history = await env.history(handle)
    replay(history, app)
    dump_history(history, tmp_path / "h.json")
    replay(load_history(tmp_path / "h.json"), app)


async def test_a_query_that_cannot_read_the_history_says_so() -> None:
    app = make_app(sorts()["encrypted"])
    async with WorkflowEnvironment(app) as env:
        handle = await app.start(Desk, SECRET)
        await env.sleep(1)
        app._sealer = Sealer(Payloads(codec=Encryption({"b": KEY})))
        with pytest.raises(PayloadError, match="'a', which this process lacks"):
            await handle.query(Desk.last, "")


# -- limits ------------------------------------------------------------------------------------------------------------
async def _starts(app: App, instance_id: str) -> None:
    await app.start(echo, HUGE)


async def _starts_by_name(app: App, instance_id: str) -> None:
    await app.start_by_name("echo", HUGE)


async def _starts_many(app: App, instance_id: str) -> None:
    await app.start_many(echo, ["small", HUGE])


async def _signals(app: App, instance_id: str) -> None:
    await app.signal(instance_id, Desk.note, HUGE)


async def _signals_by_name(app: App, instance_id: str) -> None:
    await app.signal(instance_id, "note", HUGE)


async def _updates(app: App, instance_id: str) -> None:
    await app.update(instance_id, Desk.ask, HUGE)


async def _publishes(app: App, instance_id: str) -> None:
    await app.publish("news", HUGE)


async def _sends_to(app: App, instance_id: str) -> None:
    await app.send_to(instance_id, "mine", HUGE)


async def _sends_event(app: App, instance_id: str) -> None:
    await app.send_event(type="an.event", data=HUGE)


WAYS = [_starts, _starts_by_name, _starts_many, _signals, _signals_by_name, _updates, _publishes, _sends_to]


@pytest.mark.parametrize("way", [*WAYS, _sends_event])
@pytest.mark.parametrize("sort", [None, "encrypted"])
async def test_too_large_a_value_is_an_error_at_the_call_and_is_not_sent(way: Any, sort: str | None) -> None:
    app = make_app(None if sort is None else sorts()[sort])
    async with WorkflowEnvironment(app) as env:
        handle = await app.start(Desk, "x")
        await env.sleep(1)
        before = len(env._entered.shell.tables.outbox)
        with pytest.raises(PayloadTooLargeError, match="the limit is 983,040"):
            await way(app, handle.instance_id)
        await env.sleep(1)
        assert len(env._entered.shell.tables.outbox) == before
        assert not await app.dead_letters()


@pytest.mark.parametrize("way", WAYS)
async def test_a_store_lifts_the_limit(way: Any) -> None:
    app = make_app(sorts()["both"])
    async with WorkflowEnvironment(app) as env:
        handle = await app.start(Desk, "x")
        await env.sleep(1)
        await way(app, handle.instance_id)
        await env.sleep(1)
        assert all(len(raw) < 10_000 for raw in written(env))
        assert not await app.dead_letters()


@pytest.mark.parametrize("sort", [None, "encrypted"])
async def test_too_large_an_input_of_a_schedule_is_an_error_when_the_app_is_entered(sort: str | None) -> None:
    app = make_app(None if sort is None else sorts()[sort])
    app.schedule("often", echo, HUGE, every=timedelta(minutes=1))
    with pytest.raises(PayloadTooLargeError, match=r"the input of schedule 'often': .* the limit is 983,040"):
        await app.__aenter__()


@workflow
class Answering:
    async def run(self, ctx: WorkflowContext) -> None:
        await ctx.sleep(60)

    @update
    async def much_of(self) -> str:
        return HUGE


async def test_too_large_a_result_of_an_update_is_its_failure() -> None:
    app = App("answering")
    app.include(_registry(Answering))
    async with WorkflowEnvironment(app) as env:
        handle = await app.start(Answering)
        await env.sleep(1)
        with pytest.raises(UpdateFailedError, match="the limit is 983,040"):
            await handle.update(Answering.much_of)
        await handle.result()


@activity(retry=RetryPolicy.none())
async def much(how: str) -> str:
    return HUGE


@activity(retry=RetryPolicy.none())
async def loud(ctx: ActivityContext, how: str) -> str:
    ctx.publish("news", HUGE)
    return "said"


@activity(retry=RetryPolicy.none())
async def eager(ctx: ActivityContext, how: str) -> str:
    ctx.publish_event(type="an.event", data=HUGE)
    return "said"


@workflow
async def tries(ctx: WorkflowContext, which: str) -> str:
    call = {"much": much, "loud": loud, "eager": eager}[which]
    try:
        return str(len(await call(which)))
    except PayloadTooLargeError as error:
        return str(error)


def trying(payloads: Payloads | None) -> App:
    app = App("trying", payloads=payloads)
    registry = _registry(tries)
    for each in (much, loud, eager):
        registry.add_activity(each)
    app.include(registry)
    return app


@pytest.mark.parametrize("which", ["much", "loud", "eager"])
async def test_what_an_activity_returns_or_sends_is_too_large(which: str) -> None:
    app = trying(None)
    async with WorkflowEnvironment(app):
        assert "the limit is 983,040" in await (await app.start(tries, which)).result()


async def test_a_store_lifts_the_limit_of_activities_too() -> None:
    app = trying(sorts()["both"])
    async with WorkflowEnvironment(app) as env:
        assert await (await app.start(tries, "much")).result() == str(len(HUGE))
        assert await (await app.start(tries, "loud")).result() == "4"
        assert "the limit is 983,040" in await (await app.start(tries, "eager")).result()  # others read events
        assert all(len(raw) < 10_000 for raw in written(env))


def test_names_of_the_package() -> None:
    names: Sequence[str] = ("BlobStore", "Encryption", "PayloadCodec", "Payloads")
    import romancy_stream

    assert all(name in romancy_stream.__all__ and getattr(romancy_stream, name) for name in names)


def test_a_database_may_have_its_own_order_of_keys() -> None:
    for payloads in sorts().values():
        sealed = payloads.seal(RAW, "it", {})
        told = orjson.loads(sealed)
        turned = dict(sorted(told.items(), key=lambda item: len(item[0])))
        assert put_back(orjson.dumps(turned)) == sealed
        assert put_back(sealed) == sealed
    others = (b"1", b'{"a": "$romancy"}', b'{"a": {"$romancy": "x"}}', b'["$romancy"]', b'{"a":1, "$romancy":1}', None)
    for plain in others:
        assert put_back(plain) == plain
