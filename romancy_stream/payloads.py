"""What an app does with payloads beside passing them on: encrypting them, and keeping large ones elsewhere.

    app = App("shop", payloads=Payloads(codec=Encryption({"2026": key}), store="s3://bucket/shop"))

The log, the topics and the tables then hold `{"$romancy": ...}` in place of inputs, arguments, results, outputs and
messages; workflow code, activities and clients see what was meant. Events that are published for others stay as they
are, and so do errors. Readers of the tables see what the tables hold.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar
from urllib.parse import urlsplit

import orjson

from romancy_stream.engine.payload import MAX_ENCODED_BYTES
from romancy_stream.engine.sealing import MARK, Blobs, is_sealed, unmarked, within_limit
from romancy_stream.engine.undoing import halves, is_pair, with_result
from romancy_stream.errors import ConfigurationError, PayloadError, StoreUnavailableError
from romancy_stream.ids import uuid7_hex
from romancy_stream.wire.json_text import parse_json
from romancy_stream.wire.malformed import MAX_DATA_BYTES, MAX_JSON_DEPTH, WRAPPED_LEVELS, Malformed

if TYPE_CHECKING:
    from romancy_stream.runtime.vault import Vault

T = TypeVar("T")

THRESHOLD_BYTES: Final = 256 * 1024
"""Larger payloads go to the store. A batch of a thousand of them just below would be a commit of 256 MiB."""
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12  # what GCM is made for; with random ones a key is good for 2^32 payloads (NIST SP 800-38D)
STORE_ACCESSES: Final = 16
"""Blobs that are read or written side by side."""
ACCESS_LIMIT_S: Final = 20.0
"""For one of them. A store that hangs is one that is away; the engine waits little longer for anybody."""
_BLOB: Final = "blob"
_NAME: Final = re.compile("[0-9a-f]{64}")


class PayloadCodec(Protocol):
    """Turns the JSON text of a payload into other bytes, and back. `name` is recorded with each payload and chooses
    who decodes it: never change what a name means. Called in the event loop, and in threads."""

    @property
    def name(self) -> str: ...

    def encode(self, raw: bytes) -> tuple[bytes, Mapping[str, str]]:
        """The bytes, and what `decode` has to know to read them (no secrets: it is written down in the open; no names
        that begin with "$", and none called "data")."""
        ...

    def decode(self, data: bytes, details: Mapping[str, str]) -> bytes:
        """`details` are those of `encode` and what the payload says beside them. Raises PayloadError; whatever else it
        raises becomes one."""
        ...


class Encryption:
    """AES-256-GCM. `keys`: name -> 32 bytes, or their base64. New payloads are encrypted with `current`, by default the
    last key; the others stay to read what they have written: rotate by adding a key, and remove an old one when no
    history needs it any more. Needs the extra `encryption`."""

    name = "aes-256-gcm"

    def __init__(self, keys: Mapping[str, bytes | str], current: str | None = None) -> None:
        """ConfigurationError."""
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as error:
            raise ConfigurationError('Encryption needs a package: pip install "romancy-stream[encryption]"') from error
        if not keys:
            raise ConfigurationError("Encryption needs at least one key")
        self._ciphers = {key_name: AESGCM(_key(key_name, key)) for key_name, key in keys.items()}
        self._current = next(reversed(self._ciphers)) if current is None else current
        if self._current not in self._ciphers:
            raise ConfigurationError(f"the current key {self._current!r} is not among {sorted(self._ciphers)}")

    @staticmethod
    def new_key() -> str:
        """A random key, as base64."""
        return base64.b64encode(os.urandom(KEY_BYTES)).decode()

    def encode(self, raw: bytes) -> tuple[bytes, Mapping[str, str]]:
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._ciphers[self._current].encrypt(nonce, raw, None), {"key": self._current}

    def decode(self, data: bytes, details: Mapping[str, str]) -> bytes:
        from cryptography.exceptions import InvalidTag

        cipher = self._ciphers.get(details.get("key", ""))
        if cipher is None:
            raise PayloadError(f"a payload was encrypted with key {details.get('key')!r}, which this process lacks")
        try:
            return cipher.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], None)
        except (InvalidTag, ValueError):
            raise PayloadError(
                f"a payload does not fit key {details['key']!r}: it was changed, or the key was"
            ) from None


def _key(name: str, key: bytes | str) -> bytes:
    try:
        raw = base64.b64decode(key, validate=True) if isinstance(key, str) else key
    except ValueError:
        raw = b""
    if len(raw) != KEY_BYTES:
        raise ConfigurationError(f"key {name!r} must have {KEY_BYTES} bytes (a text is read as base64)")
    return raw


class BlobStore:
    """A folder of any file system that fsspec knows: `file:///var/blobs`, `s3://bucket/prefix`, `memory://test`. The
    name of a blob is the SHA-256 of its content, and is checked when it is read. Nothing is ever deleted. `options` go
    to the file system (`endpoint_url`, credentials). Needs the extra `offload`, and for a cloud the package that fsspec
    names."""

    def __init__(self, url: str, **options: Any) -> None:
        """ConfigurationError."""
        try:
            import fsspec
        except ImportError as error:
            raise ConfigurationError('a store needs a package: pip install "romancy-stream[offload]"') from error
        self.url = url if urlsplit(url).scheme else Path(url).absolute().as_uri()
        try:
            self._files, self._folder = fsspec.core.url_to_fs(self.url, **options)
        except (ImportError, ValueError, TypeError) as error:
            raise ConfigurationError(f"the store {url!r} cannot be used: {error}") from error
        self._is_local = urlsplit(self.url).scheme in ("file", "local")

    def __repr__(self) -> str:
        return f"BlobStore({self.url!r})"

    async def put(self, blobs: Mapping[str, bytes]) -> None:
        await self._each(self._write, list(blobs.items()))

    async def get(self, names: Sequence[str]) -> Mapping[str, bytes]:
        found = await self._each(self._read, [(name,) for name in names])
        return {name: data for name, data in zip(names, found, strict=True) if data is not None}

    async def _each(self, work: Callable[..., T], items: Sequence[tuple[Any, ...]]) -> list[T]:
        slots = asyncio.Semaphore(STORE_ACCESSES)

        async def one(item: tuple[Any, ...]) -> T:
            async with slots, asyncio.timeout(ACCESS_LIMIT_S):
                return await asyncio.to_thread(work, *item)

        found = await asyncio.gather(*(one(item) for item in items), return_exceptions=True)
        for each in found:
            if isinstance(each, Exception):
                # Whatever a cloud's library raises, nobody's payload is to blame for it.
                told = f"{type(each).__name__}: {each}"
                raise StoreUnavailableError(f"the store of payloads {self.url}: {told}") from each
            if isinstance(each, BaseException):
                raise each
        return found  # type: ignore[return-value]  # none of them is an exception

    def _write(self, name: str, data: bytes) -> None:
        """Also where it is there: that may be what a crash has left of it."""
        path = self._path(name)
        if self._is_local:
            _write_file(Path(path), data)
            return
        try:
            self._files.pipe_file(path, data)
        except FileNotFoundError:  # not every file system makes folders by itself
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._files.pipe_file(path, data)

    def _read(self, name: str) -> bytes | None:
        try:
            data: bytes = self._files.cat_file(self._path(name))
        except FileNotFoundError:
            return None
        return data

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name[:2]}/{name}"


def _write_file(path: Path, data: bytes) -> None:
    """All of it or nothing, and on the disk: the database will refer to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}-{uuid7_hex()}")
    try:
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Payloads:
    """`codec`: for every payload. `older_codecs`: only to read what they have written. `store`: for payloads of more
    than `threshold_bytes`, after encoding: the URL of a BlobStore, or whatever implements `runtime.vault.Vault`.
    Implements `engine.sealing.Sealing`. ConfigurationError."""

    def __init__(
        self,
        *,
        codec: PayloadCodec | None = None,
        older_codecs: Sequence[PayloadCodec] = (),
        store: Vault | str | None = None,
        threshold_bytes: int = THRESHOLD_BYTES,
    ) -> None:
        if not 1 <= threshold_bytes <= MAX_DATA_BYTES:
            # A larger payload fits into no message: it has to go to the store.
            raise ConfigurationError(f"threshold_bytes must be 1 to {MAX_DATA_BYTES:,}, not {threshold_bytes}")
        self.store: Vault | None = BlobStore(store) if isinstance(store, str) else store and _Guarded(store)
        self._codec = codec
        self._codecs = {each.name: each for each in (*older_codecs, *([codec] if codec is not None else []))}
        for name in self._codecs:
            if name == _BLOB or not isinstance(name, str) or not name:
                raise ConfigurationError(f"a codec cannot be called {name!r}")
        self._threshold_bytes = threshold_bytes

    def seal(self, raw: bytes, what: str, blobs: MutableMapping[str, bytes]) -> bytes:
        sealed = unmarked(raw, what) if self._codec is None else _encoded(self._codec, unmarked(raw, what))
        if self.store is not None and len(sealed) > self._threshold_bytes:
            name = hashlib.sha256(sealed).hexdigest()
            blobs[name] = sealed
            return MARK + b'"%s","name":"%s","bytes":%d}' % (_BLOB.encode(), name.encode(), len(sealed))
        return within_limit(sealed, what)

    def open(self, raw: bytes, blobs: Blobs) -> bytes:
        if not is_sealed(raw):
            return raw
        if is_pair(raw):
            args, result = (self._open_one(half, blobs) for half in _halves(raw))
            opened = with_result(args, result)
        else:
            opened = self._open_one(raw, blobs)
        problem = parse_json(opened, MAX_JSON_DEPTH + WRAPPED_LEVELS)
        if isinstance(problem, Malformed):  # nobody could look at it on its way
            raise PayloadError(f"a payload that was encoded or kept elsewhere: {problem.message}")
        return opened

    def _open_one(self, raw: bytes, blobs: Blobs) -> bytes:
        if not is_sealed(raw):
            return raw
        description = _description(raw)
        if description["$romancy"] == _BLOB:
            raw = _blob(description["name"], blobs)
            if not is_sealed(raw):
                return raw
            description = _description(raw)
        return self._decoded(description)

    def _decoded(self, description: Mapping[str, Any]) -> bytes:
        name = description["$romancy"]
        codec = self._codecs.get(name)
        if codec is None:
            known = ", ".join(sorted(self._codecs)) or "none"
            raise PayloadError(f"a payload was encoded by {name!r}, which this app does not have; it has {known}")
        try:
            decoded = codec.decode(base64.b64decode(description["data"], validate=True), description)
        except PayloadError:
            raise
        except Exception as error:  # whatever a codec meets in what somebody has sent
            raise PayloadError(f"a payload cannot be decoded by {name!r}: {type(error).__name__}: {error}") from error
        if len(decoded) > MAX_ENCODED_BYTES:
            raise PayloadError(f"a payload of {len(decoded):,} bytes, the limit is {MAX_ENCODED_BYTES:,}")
        return decoded

    def refs(self, raw: bytes) -> list[str]:
        if self.store is None or not is_sealed(raw):
            return []
        try:
            parts = _halves(raw) if is_pair(raw) else (raw,)
            found = [_description(part) for part in parts if is_sealed(part)]
        except PayloadError:
            return []  # `open` will say so
        return [each["name"] for each in found if each["$romancy"] == _BLOB]


class _Guarded:
    """A store of the user's own. Whatever it raises, nobody's payload is to blame for it."""

    def __init__(self, store: Vault) -> None:
        self._store = store

    async def put(self, blobs: Mapping[str, bytes]) -> None:
        with _blaming_the_store():
            await self._store.put(blobs)

    async def get(self, names: Sequence[str]) -> Mapping[str, bytes]:
        with _blaming_the_store():
            return await self._store.get(names)


@contextmanager
def _blaming_the_store() -> Iterator[None]:
    try:
        yield
    except StoreUnavailableError:
        raise
    except Exception as error:
        raise StoreUnavailableError(f"the store of payloads: {type(error).__name__}: {error}") from error


def _encoded(codec: PayloadCodec, raw: bytes) -> bytes:
    data, details = codec.encode(raw)
    head = {"$romancy": codec.name, **details, "data": base64.b64encode(data).decode()}
    return orjson.dumps(head)


def _halves(raw: bytes) -> tuple[bytes, bytes]:
    try:
        return halves(raw)
    except ValueError:
        raise _not_ours() from None


def _blob(name: str, blobs: Blobs) -> bytes:
    data = blobs.get(name)
    if data is None:
        raise PayloadError(f"payload {name} is not in the store")
    if hashlib.sha256(data).hexdigest() != name:
        raise PayloadError(f"payload {name} was changed in the store")
    return data


def _description(raw: bytes) -> dict[str, Any]:
    """Of a sealed payload; PayloadError for one that somebody else made."""
    try:
        description = orjson.loads(raw)
    except ValueError:
        raise _not_ours() from None
    needed = "name" if description.get("$romancy") == _BLOB else "data"
    if not all(isinstance(description.get(name), str) for name in ("$romancy", needed)):
        raise _not_ours()
    if needed == "name" and not _NAME.fullmatch(description["name"]):
        raise _not_ours()
    result: dict[str, Any] = description
    return result


def _not_ours() -> PayloadError:
    return PayloadError('a payload begins with {"$romancy": and is none of ours')
