"""Errors as JSON and back. Workflow code sees an activity's error only through this, live and on replay, so that it
is the same class with the same attributes both times. Written for the worst: nothing an exception does (a `__str__`
that raises, causes in a circle, megabytes of text) may raise out of here, and nothing read from the wire may either.

    {"type": "shop.errors:CardDeclined", "bases": [...], "message": "...", "retryable": true, "stack": "...",
     "args": [...], "attributes": {...}, "details": {...}, "cause": {...}, "retry_after_s": 30.0}

Only `type` and `message` are always there: workers in other languages send just those, and `details`, anything.
Imports the module that an error's class names; otherwise pure.
"""

from __future__ import annotations

import builtins
import importlib
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any, Final

import orjson

from romancy_stream.errors import (
    LONGEST_DELAY_S,
    ActivityError,
    ActivityTimeoutError,
    InstanceExistsError,
    InvalidInputError,
    RetryExhaustedError,
    RetryLaterError,
    RomancyError,
    StartRefusedError,
    UnknownWorkflowError,
    WorkflowCancelledError,
    WorkflowFailedError,
)
from romancy_stream.retry import class_path, class_paths, main_module

# A failed attempt is stored with the instance and sent as an event: all that follows must fit a record many times.
MAX_MESSAGE_CHARS: Final = 4_000
MAX_STACK_CHARS: Final = 8_000
MAX_STACK_FRAMES: Final = 30
MAX_CAUSES: Final = 5
MAX_ATTRIBUTES: Final = 50
# For `args` and for `attributes` each; what does not fit is kept as text in `details`.
MAX_VALUES_BYTES: Final = 16_000
MAX_REPR_CHARS: Final = 500
# All of the above together; a foreign worker's error may be larger, and is cut to its type and message as a cause.
MAX_CAUSE_BYTES: Final = 400_000

# What these keep in C, beside their args.
_HIDDEN_STATE: Final[dict[type[BaseException], tuple[str, ...]]] = {
    OSError: ("filename", "filename2"),
    ImportError: ("name", "path"),
    NameError: ("name",),
    AttributeError: ("name",),
}
_IMPORT_PATH: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_PLAIN: Final = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS


# -- to JSON ---------------------------------------------------------------------------------------------------
def encode_error(error: BaseException, *, retryable: bool) -> bytes:
    try:
        return orjson.dumps(_describe(error, retryable, causes_left=MAX_CAUSES))
    except Exception as failure:  # a class that fights back with __getattribute__, a metaclass...
        message = f"an error that cannot be described: {type(failure).__name__}"
        return orjson.dumps({"type": "", "message": message, "retryable": retryable})


def exhausted(last_error: bytes, attempts: int) -> bytes:
    """RetryExhaustedError with the last attempt's error as its cause."""
    cause = _loads(last_error)
    last = f"{_short_type(cause)}: {cause['message']}" if cause["message"] else _short_type(cause)
    error = RetryExhaustedError(f"{attempts} attempts failed; the last with {last}", attempts=attempts)
    description = _describe(error, False, causes_left=0)
    if len(last_error) <= MAX_CAUSE_BYTES:
        try:
            return orjson.dumps(description | {"cause": _pruned(cause, MAX_CAUSES)})
        except TypeError:  # nested deeper than it can be written
            pass
    return orjson.dumps(description | {"cause": {name: cause[name] for name in ("type", "message")}})


def timed_out(activity_id: str, timeout_s: float, *, total: bool = False) -> bytes:
    """ActivityTimeoutError. `total`: the limit over all attempts, after which there is no other."""
    limit = "total_timeout" if total else "timeout"
    error = ActivityTimeoutError(f"activity {activity_id} did not finish within its {limit} of {timeout_s:g} s")
    return orjson.dumps(_describe(error, not total, causes_left=0))


def silent(activity_id: str, timeout_s: float) -> bytes:
    """ActivityTimeoutError of an attempt whose heartbeats have ceased."""
    error = ActivityTimeoutError(f"activity {activity_id} was silent for its heartbeat_timeout of {timeout_s:g} s")
    return orjson.dumps(_describe(error, True, causes_left=0))


def _describe(error: BaseException, retryable: bool, causes_left: int) -> dict[str, Any]:
    cls = type(error)
    message = _message(error)
    described: dict[str, Any] = {
        "type": clean(class_path(cls)),
        "bases": [clean(path) for path in class_paths(cls)[1:]],
        "message": message,
        "retryable": retryable,
        "stack": _stack(error, message),
    }
    if isinstance(error, RetryLaterError):
        described["retry_after_s"] = error.delay_s
    args = error.args
    if _is_plain(list(args)):
        described["args"] = list(args)
    described |= _attributes(error)
    if "args" not in described:
        described.setdefault("details", {})["args"] = _text(repr, args, MAX_REPR_CHARS)
    if causes_left > 0 and error.__cause__ is not None:
        described["cause"] = _describe(error.__cause__, retryable, causes_left - 1)
    return described


def _attributes(error: BaseException) -> dict[str, Any]:
    """`attributes` that JSON keeps as they are, and `details`: the repr of the others."""
    kept: dict[str, Any] = {}
    details: dict[str, str] = {}
    size_bytes = 0
    for name, value in _state(error)[:MAX_ATTRIBUTES]:
        if _is_plain(value) and size_bytes + len(orjson.dumps(value)) <= MAX_VALUES_BYTES:
            kept[name] = value
            size_bytes += len(orjson.dumps(value))
        else:
            details[name] = _text(repr, value, MAX_REPR_CHARS)
    return ({"attributes": kept} if kept else {}) | ({"details": details} if details else {})


def _state(error: BaseException) -> list[tuple[str, Any]]:
    state = dict(getattr(error, "__dict__", {}))
    for cls in type(error).__mro__:
        slots = _HIDDEN_STATE.get(cls) or cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            try:
                value = getattr(error, name)
            except Exception:  # a slot that was never set
                continue
            if value is not None:
                state[name] = value
    return [(name, value) for name, value in state.items() if isinstance(name, str) and _is_plain(name)]


def _is_plain(value: Any) -> bool:
    """Whether JSON gives back just this value: no tuples, no subclasses, no NaN, nothing a database refuses."""
    try:
        raw = orjson.dumps(value, option=_PLAIN)
        return len(raw) <= MAX_VALUES_BYTES and b"\\u0000" not in raw and bool(orjson.loads(raw) == value)
    except Exception:
        return False


def _message(error: BaseException) -> str:
    return _text(str, error, MAX_MESSAGE_CHARS)


def _text(render: Any, value: Any, limit_chars: int) -> str:
    try:
        text = render(value)
    except Exception as failure:
        text = f"<{type(value).__name__} whose {render.__name__}() raises {type(failure).__name__}>"
    return shortened(clean(text), limit_chars)


def _stack(error: BaseException, message: str) -> str:
    try:
        frames = traceback.format_tb(error.__traceback__, limit=-MAX_STACK_FRAMES)
    except Exception as failure:
        frames = [f"  <no stack: {type(failure).__name__}>\n"]
    text = clean("".join(frames))[-MAX_STACK_CHARS:]
    last = f"{clean(class_path(type(error)))}: {shortened(message, MAX_REPR_CHARS)}"
    return f"Traceback (most recent call last):\n{text}{last}"


def clean(text: str) -> str:
    """Without what JSON or a database refuses: NUL characters and lone surrogates."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def shortened(text: str, limit_chars: int) -> str:
    return text if len(text) <= limit_chars else text[: limit_chars - 3] + "..."


# -- from JSON -------------------------------------------------------------------------------------------------
def decode_error(raw: bytes | None) -> Exception:
    """The error as it was, when its class can be imported here and can be made from what was kept; else an
    ActivityError that carries its type, message and details."""
    return _restore(_loads(raw), MAX_CAUSES)


def is_retryable(raw: bytes | None) -> bool:
    """What the worker said; a foreign worker that says nothing leaves it to the policy."""
    return _loads(raw).get("retryable") is not False


def retry_after_s(raw: bytes | None) -> float | None:
    """When the worker asks to be given the task again; None: the policy decides."""
    delay_s = _loads(raw).get("retry_after_s")
    if not isinstance(delay_s, int | float) or isinstance(delay_s, bool) or not 0 <= delay_s <= LONGEST_DELAY_S:
        return None
    return float(delay_s)


def error_classes(raw: bytes | None) -> tuple[str, ...]:
    """Import paths of the class and its bases, for RetryPolicy.allows."""
    error = _loads(raw)
    bases = error.get("bases")
    if not isinstance(bases, list):
        bases = ["builtins:Exception", "builtins:BaseException"]
    return (error["type"], *(base for base in bases if isinstance(base, str)))


def workflow_failed(instance_id: str, raw: bytes | None) -> WorkflowFailedError:
    """What result() raises; its `__cause__` is the error itself."""
    error = _loads(raw)
    stack = error.get("stack")
    failed = WorkflowFailedError(
        instance_id,
        error["type"],
        error["message"],
        stack if isinstance(stack, str) else None,
        _not_undone(error),
    )
    failed.__cause__ = _restore(error, MAX_CAUSES)
    return failed


def workflow_cancelled(instance_id: str, raw: bytes | None) -> WorkflowCancelledError:
    """What result() raises."""
    told = orjson.loads(raw or b"{}")
    return WorkflowCancelledError(instance_id, told.get("reason"), told.get("by"), _not_undone(told))


def _not_undone(told: dict[str, Any]) -> list[str]:
    refs = told.get("compensation_failed")
    return [ref for ref in refs if isinstance(ref, str)] if isinstance(refs, list) else []


def rejection_of(reason: str, message: str, errors: Sequence[dict[str, Any]]) -> RomancyError:
    """Why a start was refused, as its sender hears it."""
    if reason == "invalid_input":
        return InvalidInputError(message, errors)
    if reason == "instance_exists":
        return InstanceExistsError(message)
    if reason == "unknown_workflow":
        return UnknownWorkflowError(message)
    return StartRefusedError(f"{reason}: {message}")


def _loads(raw: bytes | None) -> dict[str, Any]:
    """`type` and `message` are strings in what comes back, whatever was sent."""
    try:
        data = orjson.loads(raw or b"null")
    except ValueError:
        data = clean((raw or b"").decode("utf-8", "replace"))
    return _normal(data)


def _normal(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        data = {"message": data if isinstance(data, str) else ""} | ({} if data is None else {"details": data})
    type_, message = data.get("type"), data.get("message")
    return {
        **data,
        "type": type_ if isinstance(type_, str) else "",
        "message": shortened(message, MAX_MESSAGE_CHARS) if isinstance(message, str) else "",
    }


def _pruned(error: dict[str, Any], causes_left: int) -> dict[str, Any]:
    """Without the causes that are too deep."""
    cause = error.get("cause")
    rest = {key: value for key, value in error.items() if key != "cause"}
    if not isinstance(cause, dict) or causes_left <= 1:
        return rest
    return rest | {"cause": _pruned(cause, causes_left - 1)}


def _short_type(error: dict[str, Any]) -> str:
    return str(error["type"]).rpartition(":")[2] or "an error"


def _restore(error: dict[str, Any], causes_left: int) -> Exception:
    cls = _find_class(error["type"])
    restored = None if cls is None else _make(cls, error)
    if restored is None:
        restored = ActivityError(error["message"], error_type=error["type"], details=_details(error))
    cause = error.get("cause")
    if isinstance(cause, dict) and causes_left > 0:
        _set(restored, "__cause__", _restore(_normal(cause), causes_left - 1))
    return restored


def _details(error: dict[str, Any]) -> Any:
    attributes, details = error.get("attributes"), error.get("details")
    if isinstance(attributes, dict) and isinstance(details, dict | None):
        return attributes | (details or {})
    return details


def _find_class(path: str) -> type[Exception] | None:
    if not _IMPORT_PATH.fullmatch(path):
        return None
    module_name, _, qualname = path.partition(":")
    # Our own script under its other name: never imported a second time, it might run.
    found: Any = _module("__main__" if module_name == main_module() else module_name)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type) or not issubclass(found, Exception):
        return None
    return None if issubclass(found, StopIteration | StopAsyncIteration) else found  # no future takes those


def _module(name: str) -> Any:
    if name in sys.modules:
        return sys.modules[name]
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit):  # whatever a module does when it is imported here
        return None


def _make(cls: type[Exception], error: dict[str, Any]) -> Exception | None:
    """Without the class's own `__init__`: its parameters are not known, and its effects were kept. None when the
    class does not come to life that way."""
    args, attributes = error.get("args"), error.get("attributes")
    if not isinstance(args, list):
        args = [error["message"]]
    try:
        made: Exception = cls.__new__(cls, *args)
        _set(made, "args", tuple(args))
        _builtin_base(cls).__init__(made, *args)
        for name, value in (attributes if isinstance(attributes, dict) else {}).items():
            _set(made, name, value)
        str(made)
        repr(made)
        _repair_notes(made)
    except Exception:
        return None
    return made if isinstance(made, Exception) else None


def _repair_notes(error: Exception) -> None:
    """Python looks for notes when it prints an error; a `__getattr__` that relies on `__init__` (urllib's HTTPError)
    would raise something else then."""
    try:
        getattr(error, "__notes__", None)
    except Exception:
        _set(error, "__notes__", [])


def _builtin_base(cls: type[Exception]) -> Any:
    """The nearest base that Python itself defines: OSError keeps its errno, SystemExit its code in C."""
    return next(base for base in cls.__mro__ if getattr(builtins, base.__name__, None) is base)


def _set(error: Exception, name: str, value: Any) -> None:
    """Also where the class forbids it (frozen dataclasses)."""
    try:
        object.__setattr__(error, name, value)
    except AttributeError:  # a property of the same name
        error.__dict__[name] = value
