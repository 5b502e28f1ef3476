"""What workflow code gets back for its calls is the same on replay as it was live: values of their declared types, and
errors of their classes with their attributes. In a world that crashes before each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel
from typing_extensions import TypedDict

from romancy_stream import ActivityError, RetryExhaustedError, RetryPolicy, TerminalError, WorkflowContext
from romancy_stream.activity import activity
from romancy_stream.workflow import workflow
from tests.engine.world import World


class Colour(Enum):
    RED = "red"


class Part(BaseModel):
    sku: str
    price: Decimal
    due: date | None = None


@dataclass(frozen=True)
class Receipt:
    number: UUID
    at: datetime
    took: timedelta
    parts: list[Part]
    raw: bytes


class Address(TypedDict):
    street: str
    colour: Colour


VALUES: list[tuple[Any, Any, Any]] = [  # the declared type, the result in JSON, the result
    (int, 2**60 + 1, 2**60 + 1),
    (Decimal, "1.10", Decimal("1.10")),
    (Colour, "red", Colour.RED),
    (
        Part,
        {"sku": "a", "price": "2.5", "due": "2026-02-01"},
        Part(sku="a", price=Decimal("2.5"), due=date(2026, 2, 1)),
    ),
    (list[Part], [{"sku": "a", "price": "1"}], [Part(sku="a", price=Decimal(1))]),
    (dict[str, Colour | None], {"x": "red", "y": None}, {"x": Colour.RED, "y": None}),
    (Address, {"street": "s", "colour": "red"}, {"street": "s", "colour": Colour.RED}),
    (tuple[int, str], [1, "b"], (1, "b")),
    (
        Receipt,
        {
            "number": "00000000-0000-0000-0000-000000000007",
            "at": "2026-01-01T12:00:00Z",
            "took": "PT1.5S",
            "parts": [],
            "raw": "AP8=",
        },
        Receipt(UUID(int=7), datetime(2026, 1, 1, 12, tzinfo=UTC), timedelta(seconds=1.5), [], b"\x00\xff"),
    ),
]


@pytest.mark.parametrize(("type_", "json", "value"), VALUES, ids=lambda case: getattr(case, "__name__", None))
def test_a_typed_result_is_of_its_type_on_replay(type_: Any, json: Any, value: Any) -> None:
    async def ask() -> Any:
        raise AssertionError("activities run in workers")

    ask.__annotations__["return"] = type_
    asking = activity(ask)
    seen: list[Any] = []

    @workflow
    async def asks(ctx: WorkflowContext) -> None:
        seen.append(await asking())
        await ctx.sleep(1)
        await ctx.sleep(1)

    world = World(asks, answers={"ask": lambda _, args: json})
    world.start("asks")
    world.run(restarts=True)
    assert world.output() is None
    assert len(seen) >= 3  # once live, then on replay
    assert all(each == value and type(each) is type(value) for each in seen)


class CardDeclined(Exception):
    """Takes what it does not pass on, as users' errors do."""

    def __init__(self, order_id: str, *, code: int) -> None:
        super().__init__(f"card declined for {order_id}")
        self.order_id = order_id
        self.code = code


class OutOfStock(TerminalError):
    def __init__(self, sku: str, left: int) -> None:
        super().__init__(f"{left} of {sku} left")
        self.sku = sku
        self.left = left


def make_local() -> type[Exception]:
    class Local(Exception):
        pass

    return Local


Described = tuple[type[BaseException], str, Any]


def described(error: BaseException) -> Described:
    attributes = {name: value for name, value in vars(error).items() if not name.startswith("_")}
    return type(error), str(error), attributes


ERRORS: list[tuple[Callable[[], Exception], RetryPolicy, Callable[[list[BaseException]], bool]]] = [
    (lambda: TerminalError("torn"), RetryPolicy(), lambda chain: type(chain[0]) is TerminalError),
    (
        lambda: OutOfStock("pen", left=2),
        RetryPolicy(),
        lambda chain: isinstance(chain[0], OutOfStock) and (chain[0].sku, chain[0].left) == ("pen", 2),
    ),
    (
        lambda: CardDeclined("o-1", code=503),
        RetryPolicy.fixed(3, 1.0),
        lambda chain: (
            isinstance(chain[0], RetryExhaustedError)
            and chain[0].attempts == 3
            and isinstance(chain[1], CardDeclined)
            and chain[1].code == 503
        ),
    ),
    (
        lambda: make_local()("nobody can import this"),
        RetryPolicy.none(),
        lambda chain: (
            isinstance(chain[0], RetryExhaustedError)
            and isinstance(chain[1], ActivityError)
            and "Local" in chain[1].error_type
        ),
    ),
    (
        lambda: OSError(28, "No space left", "/disk"),
        RetryPolicy.none(),
        lambda chain: isinstance(chain[1], OSError) and (chain[1].errno, chain[1].filename) == (28, "/disk"),
    ),
]


@pytest.mark.parametrize(("make", "policy", "expected"), ERRORS, ids=["terminal", "own", "exhausted", "local", "os"])
def test_an_error_keeps_its_class_and_its_attributes_on_replay(
    make: Callable[[], Exception], policy: RetryPolicy, expected: Callable[[list[BaseException]], bool]
) -> None:
    @activity(retry=policy)
    async def ask() -> None:
        raise AssertionError("activities run in workers")

    seen: list[list[BaseException]] = []

    @workflow
    async def asks(ctx: WorkflowContext) -> None:
        try:
            await ask()
        except Exception as error:
            chain: list[BaseException] = [error]
            while (cause := chain[-1].__cause__) is not None:
                chain.append(cause)
            seen.append(chain)
        await ctx.sleep(1)
        await ctx.sleep(1)

    def answer(*_: Any) -> None:
        raise make()

    world = World(asks, answers={"ask": answer})
    world.start("asks")
    world.run(restarts=True)
    assert world.output() is None
    assert len(seen) >= 3  # once live, then on replay
    assert expected(seen[0]), seen[0]
    told = [[described(error) for error in chain] for chain in seen]
    assert all(chain == told[0] for chain in told)
