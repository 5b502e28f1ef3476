"""What a compensation is called with: the arguments of the call that it undoes, by name, and that call's result as the
argument `result`. The two are put together here as bytes; a value that a user sent is never parsed and written again.
Either may be sealed. Then they travel side by side as a sealed payload of its own sort, and are put together by who
opens it:

    {"$romancy":{"undo":<length of the arguments>},"args":<arguments>,"result":<result>}

Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from romancy_stream.engine.sealing import MARK, is_sealed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from romancy_stream.engine.parameters import Parameters

RESULT: Final = "result"
"""The parameter of a compensation that gets what the activity has returned."""
_NO_NAMES: Final = b'{"args":[],"kwargs":{}}'
_PAIR: Final = MARK + b'{"undo":'
_ARGS: Final = b'},"args":'
_RESULT: Final = b',"result":'


def shared_names(activity: Parameters, compensation: Parameters) -> tuple[str, ...]:
    """Parameters of a compensation that get the value of the activity's argument of that name. TypeError when it
    cannot be called that way."""
    told = f"the compensation of {activity.what} is {compensation.what}"
    stray = [name for name in compensation.names if name in compensation.positional_only]
    if stray:
        raise TypeError(f"{told}, which gets its arguments by name: parameter {stray[0]!r} must not be positional-only")
    missing = sorted(compensation.required - {*activity.names, RESULT})
    if missing:
        raise TypeError(
            f"{told}, which needs {missing[0]!r}: no parameter of the activity has that name. Give it a default, name "
            f"it as the activity does, take what the activity returns as {RESULT!r}, or register the compensation in "
            "the workflow: ctx.on_rollback(...)"
        )
    return tuple(name for name in compensation.names if name in activity.names and name != RESULT)


def named_call(values: Sequence[tuple[str, bytes]]) -> bytes:
    """Arguments by name, of raw JSON."""
    return b'{"args":[],"kwargs":{' + b",".join([b'"%s":%s' % (name.encode(), raw) for name, raw in values]) + b"}}"


def with_result(args: bytes, result: bytes) -> bytes:
    """`args` as `named_call` made them, each part open or sealed."""
    if is_sealed(args) or is_sealed(result):
        return b"%b%d%b%b%b%b}" % (_PAIR, len(args), _ARGS, args, _RESULT, result)
    comma = b"" if args == _NO_NAMES else b","
    return args[:-2] + comma + b'"result":' + result + b"}}"


def is_pair(raw: bytes) -> bool:
    return raw.startswith(_PAIR)


def halves(raw: bytes) -> tuple[bytes, bytes]:
    """Of a pair: arguments and result, each open or sealed, for `with_result` once both are open."""
    begin = raw.index(_ARGS) + len(_ARGS)
    end = begin + int(raw[len(_PAIR) : begin - len(_ARGS)])
    return raw[begin:end], raw[end + len(_RESULT) : -1]
