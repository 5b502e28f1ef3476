"""What an app does with payloads beside passing them on: encrypting them, and keeping large ones elsewhere.

    app = App("shop", payloads=Payloads(codec=Encryption({"2026": key}), store="s3://bucket/shop"))

The log, the topics and the tables then hold `{"$romancy": ...}` in place of inputs, arguments, results, outputs and
messages; workflow code, activities and clients see what was meant. Events that are published for others stay as they
are. The command line and other readers of the tables see what the tables hold.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import orjson

from romancy_stream.engine.sealing import MARK, Blobs, is_sealed, within_limit
from romancy_stream.engine.undoing import halves, is_pair, with_result
from romancy_stream.errors import ConfigurationError, PayloadError, StoreUnavailableError

THRESHOLD_BYTES: Final = 256 * 1024
"""Larger payloads go to the store. A batch of a thousand of them just below would be a commit of 256 MiB."""
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12  # what GCM is made for; with random ones a key is good for 2^32 payloads (NIST SP 800-38D)
STORE_ACCESSES: Final = 16
"""Blobs that are read or written side by side."""
_BLOB: Final = "blob"


class PayloadCodec(Protocol):
    """Turns the JSON text of a payload into other bytes, and back. `name` is recorded with each payload and chooses
    who decodes it: never change what a name means."""

    @property
    def name(self) -> str: ...

    def encode(self, raw: bytes) -> tuple[bytes, Mapping[str, str]]:
        """The bytes, and what `decode` has to know to read them (no secrets: it is written down in the open)."""
        ...

    def decode(self, data: bytes, details: Mapping[str, str]) -> bytes:
        """Raises PayloadError."""
        ...


class Encryption:
    """AES-256-GCM. `keys`: name -> 32 bytes, or their base64. New payloads are encrypted with `current`, by default the
    last key; the others stay to read what they have written: rotate by adding a key, and remove an old one when no
    history needs it any more. Needs the extra `encryption`."""

    name = "aes-256-gcm"

    def __init__(self, keys: Mapping[str, bytes | str], current: str | None = None) -> None:
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
        except InvalidTag:
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
    name of a blob is the SHA-256 of its content, and is checked when it is read. Needs the extra `offload`, and for a
    cloud the package that fsspec names."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ImportError as error:
            raise ConfigurationError('a store needs a package: pip install "romancy-stream[offload]"') from error
        self.url = url if urlsplit(url).scheme else f"file://{os.path.abspath(url)}"
        try:
            self._files, self._folder = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ConfigurationError(f"the store {url!r} cannot be used: {error}") from error

    async def put(self, blobs: Mapping[str, bytes]) -> None:
        await self._each(self._write, blobs.items())

    async def get(self, names: Sequence[str]) -> Mapping[str, bytes]:
        found = await self._each(self._read, [(name,) for name in names])
        return {name: data for name, data in zip(names, found, strict=True) if data is not None}

    async def _each(self, work: Any, items: Any) -> list[Any]:
        slots = asyncio.Semaphore(STORE_ACCESSES)

        async def one(item: tuple[Any, ...]) -> Any:
            async with slots:
                return await asyncio.to_thread(work, *item)

        try:
            return list(await asyncio.gather(*(one(item) for item in items)))
        except OSError as error:
            raise StoreUnavailableError(f"the store of payloads {self.url} cannot be reached: {error}") from error

    def _write(self, name: str, data: bytes) -> None:
        path = self._path(name)
        if not self._files.exists(path):
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


class Payloads:
    """`codec`: for every payload. `older_codecs`: only to read what they have written. `store`: for payloads of more
    than `threshold_bytes`, after encoding; a BlobStore or its URL. Implements `engine.sealing.Sealing`."""

    def __init__(
        self,
        *,
        codec: PayloadCodec | None = None,
        older_codecs: Sequence[PayloadCodec] = (),
        store: BlobStore | str | None = None,
        threshold_bytes: int = THRESHOLD_BYTES,
    ) -> None:
        if threshold_bytes < 1:
            raise ConfigurationError(f"threshold_bytes must be 1 or more, not {threshold_bytes}")
        self.store = BlobStore(store) if isinstance(store, str) else store
        self._codec = codec
        self._codecs = {each.name: each for each in (*older_codecs, *([codec] if codec is not None else []))}
        self._threshold_bytes = threshold_bytes

    def seal(self, raw: bytes, what: str, blobs: MutableMapping[str, bytes]) -> bytes:
        if is_sealed(raw):
            return raw
        sealed = raw if self._codec is None else _encoded(self._codec, raw)
        if self.store is not None and len(sealed) > self._threshold_bytes:
            name = hashlib.sha256(sealed).hexdigest()
            blobs[name] = sealed
            return MARK + b'"%s","name":"%s","bytes":%d}' % (_BLOB.encode(), name.encode(), len(sealed))
        return within_limit(sealed, what)

    def open(self, raw: bytes, blobs: Blobs) -> bytes:
        if not is_sealed(raw):
            return raw
        if is_pair(raw):
            args, result = (self.open(half, blobs) for half in halves(raw))
            return with_result(args, result)
        description = _description(raw)
        if description["$romancy"] == _BLOB:
            name = description["name"]
            data = blobs.get(name)
            if data is None or hashlib.sha256(data).hexdigest() != name:
                problem = "is not in the store" if data is None else "was changed in the store"
                raise PayloadError(f"payload {name} {problem}")
            return self.open(data, {})
        codec = self._codecs.get(description["$romancy"])
        if codec is None:
            raise PayloadError(f"a payload was encoded by {description['$romancy']!r}, which this app does not have")
        return codec.decode(base64.b64decode(description["data"]), description)

    def refs(self, raw: bytes) -> list[str]:
        if self.store is None or not is_sealed(raw):
            return []
        if is_pair(raw):
            return [name for half in halves(raw) for name in self.refs(half)]
        try:
            description = _description(raw)
        except PayloadError:
            return []  # `open` will say so
        return [description["name"]] if description["$romancy"] == _BLOB else []


def _encoded(codec: PayloadCodec, raw: bytes) -> bytes:
    data, details = codec.encode(raw)
    head = {"$romancy": codec.name, **details, "data": base64.b64encode(data).decode()}
    return orjson.dumps(head)


def _description(raw: bytes) -> dict[str, Any]:
    """Of a sealed payload; PayloadError for one that somebody else made."""
    try:
        description = orjson.loads(raw)
        if description["$romancy"] == _BLOB:
            int(description["name"], 16)
        fitting = all(isinstance(value, str | int) for value in description.values())
    except (ValueError, KeyError, TypeError):
        fitting = False
    if not fitting:
        raise PayloadError('a payload begins with {"$romancy": and is none of ours')
    result: dict[str, Any] = description
    return result
