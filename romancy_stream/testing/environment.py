"""`WorkflowEnvironment`: an app without a broker, a database and a clock of its own, for tests of workflows. It is the
real engine, the real codecs and the real attempts of activities; messages wait in a list, rows are in dicts, and time
moves when somebody waits for it. It is a client like any other, and while it is entered the app under test is one too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random, SystemRandom
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar, overload

from romancy_stream.activity import Activity
from romancy_stream.app import App
from romancy_stream.client import BaseClient
from romancy_stream.errors import ConfigurationError
from romancy_stream.handle import Handle
from romancy_stream.instances import microseconds, moment
from romancy_stream.registry import Registry
from romancy_stream.runtime.node import core_config
from romancy_stream.testing.driver import LATEST_US
from romancy_stream.testing.histories import History
from romancy_stream.testing.mocks import UNSET, Call, Mock, name_of
from romancy_stream.testing.world import PublishedEvent, Settings, World
from romancy_stream.wire.event import RESERVED_PREFIX
from romancy_stream.workflow import I, P, R, Startable

if TYPE_CHECKING:
    from sqlalchemy import MetaData
    from sqlalchemy.ext.asyncio import AsyncSession

T = TypeVar("T")

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
PARTITIONS_IN_DISORDER: Final = 8
NAMESPACE: Final = "test"
_US: Final = timedelta(microseconds=1)
_PARTS: Final = ("_broker", "_store", "_hub", "_now_us", "_new_id")
"""Of a client, while it is entered."""


class WorkflowEnvironment(BaseClient):
    """An async context manager; also a plain one, for tests that are no coroutines: then `run` runs what is awaited.

    `code`: the app or the registry under test. `now`: the time at which it begins. `auto_skip`: waiting for an instance
    moves the clock to whatever is due next; without it only `sleep` does. `metadata`: tables to be made for activities,
    in SQLite in memory, or in the `database` of that URL. `crashes="every-step"`: all that is in memory is dropped
    before each step, and replayed. `disorder`: messages come late, in another order and twice, as a broker may deliver
    them; `seed` repeats it, and is added to the error that leaves the block. `mocks_only`: an activity without a mock
    is an error. `schedules`: those that the app declares are there from the beginning."""

    def __init__(
        self,
        code: App | Registry,
        *,
        now: datetime = START,
        auto_skip: bool = True,
        metadata: MetaData | None = None,
        database: str | None = None,
        crashes: Literal["never", "every-step"] = "never",
        disorder: bool = False,
        seed: int | None = None,
        mocks_only: bool = False,
        schedules: bool = False,
    ) -> None:
        if not isinstance(code, App | Registry):
            raise TypeError(f"WorkflowEnvironment takes an App or a Registry, not {code!r}")
        if crashes not in ("never", "every-step"):
            raise ValueError(f'crashes is "never" or "every-step", not {crashes!r}')
        self._app = code if isinstance(code, App) else App(NAMESPACE)
        self.registry = code.registry if isinstance(code, App) else code
        self.namespace = self._app.namespace
        self.seed = seed if seed is not None or not disorder else SystemRandom().getrandbits(32)
        self._adopts = isinstance(code, App)
        self._app_sealer = self._app._sealer  # for after
        config = replace(self._app.node_config(), partitions=PARTITIONS_IN_DISORDER if disorder else 1)
        self._settings = Settings(
            core_config(config, self.registry),
            self.registry,
            microseconds(now),
            auto_skip,
            metadata,
            database,
            crashes == "every-step",
            Random(self.seed) if disorder else None,
            mocks_only,
        )
        self._schedules = schedules
        self._world: World | None = None
        self._numbers: dict[str, int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runner: asyncio.Runner | None = None

    def __repr__(self) -> str:
        return f"<WorkflowEnvironment {self.namespace}>"

    # -- life ----------------------------------------------------------------------------------------------------
    async def __aenter__(self) -> Self:
        if self._loop is not None:
            raise ConfigurationError(f"{self!r} was entered before: make another one")
        if self._adopts and any(part in vars(self._app) for part in _PARTS):
            raise ConfigurationError(f"{self._app!r} is entered already, or in another environment")
        self._loop = asyncio.get_running_loop()
        self.registry.resolve()
        self._world = world = World(self._settings)
        try:
            await world.sessions.open()
        except BaseException:
            await world.close()
            raise
        parts = {"_broker": world.broker, "_store": world.store, "_hub": world.hub}
        vars(self).update(parts, _sealer=world.sealer)
        if self._adopts:
            vars(self._app).update(parts, _now_us=self._now_us, _new_id=self._new_id, _sealer=world.sealer)
        if self._schedules:
            await self._declare_all(self._app.declared_schedules())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        world, self._world = self._entered, None
        for part in _PARTS:
            vars(self).pop(part, None)
            if self._adopts:
                del vars(self._app)[part]
        self._app._sealer = self._app_sealer
        await world.close()
        if error is not None and self._settings.disorder is not None:
            error.add_note(self.how_to_repeat)
        if error is None and world.driver.failure is not None and not world.driver.told:
            raise world.driver.failure

    @property
    def _entered(self) -> World:
        if self._world is None:
            raise ConfigurationError(f"{self!r} is not entered: use it inside `async with`")
        with contextlib.suppress(RuntimeError):  # none runs: a test that is no coroutine looks at something
            if asyncio.get_running_loop() is not self._loop:
                raise ConfigurationError(f"{self!r} was entered in another event loop")
        return self._world

    @property
    def how_to_repeat(self) -> str:
        return f"the disorder of this test comes again with WorkflowEnvironment(..., disorder=True, seed={self.seed})"

    def __enter__(self) -> Self:
        self._runner = asyncio.Runner()
        try:
            return self._runner.run(self.__aenter__())
        except BaseException:
            self._runner.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        with self._runner:
            self._runner.run(self.__aexit__(kind, error, trace))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """In a test that is no coroutine: `with WorkflowEnvironment(app) as env: env.run(env.start(...))`."""
        if self._runner is None:
            work.close()
            raise ConfigurationError("run is for `with WorkflowEnvironment(...)`; inside `async with` use await")
        return self._runner.run(work)

    # -- time ----------------------------------------------------------------------------------------------------
    def now(self) -> datetime:
        """What `ctx.now()` shows in a step that is taken now."""
        return moment(self._now_us())

    def _now_us(self) -> int:
        return self._settings.start_us if self._world is None else self._world.now_us()

    def _new_id(self, workflow_name: str) -> str:
        number = self._numbers[workflow_name] = self._numbers.get(workflow_name, 0) + 1
        return f"{workflow_name}-{number}"

    async def sleep(
        self,
        duration: float | timedelta = 0.0,
        *,
        days: float = 0.0,
        hours: float = 0.0,
        minutes: float = 0.0,
        seconds: float = 0.0,
    ) -> None:
        """Lets this much time pass, in seconds or as a timedelta; whatever is due meanwhile happens when it is due.
        `sleep(0)`: until nothing moves any more but time."""
        world = self._entered
        span = duration if isinstance(duration, timedelta) else timedelta(seconds=duration)
        span += timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        if span < timedelta(0):
            raise ValueError(f"time does not go back: {span}")
        if world.now_us() + span // _US > LATEST_US:
            raise ValueError(f"too long to sleep: {span}")
        await world.driver.sleep_until(world.now_us() + span // _US, moves=True)

    # -- activities ----------------------------------------------------------------------------------------------
    def mock(
        self,
        activity: Activity[..., Any] | str,
        *,
        returns: Any = UNSET,
        raises: BaseException | type[BaseException] | None = None,
        side_effect: Callable[..., Any] | None = None,
        outcomes: Sequence[Any] | None = None,
        takes: float | timedelta = 0.0,
    ) -> Mock:
        """From here on the activity does not run: it `returns` a value, `raises` an error, does what `side_effect` does
        with its arguments (a function, async or not), or goes through `outcomes`, one an attempt: values, and errors
        to be raised. None of them: it returns None. It `takes` that long by the environment's clock (seconds, or a
        timedelta), or for ever: `NEVER`. Its arguments, its result and its errors go the way of real ones: they are
        checked against the activity's types, and errors are tried again by its retry policy."""
        found = self.registry.activities.get(activity) if isinstance(activity, str) else activity
        if not isinstance(found, Activity):
            raise TypeError(f"{activity!r} is no activity, nor the name of one that is registered")
        span = takes if isinstance(takes, timedelta) else timedelta(seconds=takes)
        if returns is UNSET and raises is None and side_effect is None and outcomes is None:
            returns = None
        mock = Mock(found, returns, raises, side_effect, outcomes, span, on_remove=self._unmock)
        self._entered.crew.mocks[mock.name] = mock
        return mock

    def _unmock(self, mock: Mock) -> None:
        mocks = self._entered.crew.mocks
        if mocks.get(mock.name) is mock:
            del mocks[mock.name]

    def calls(self, activity: Activity[..., Any] | str | None = None) -> list[Call]:
        """Attempts that were begun, in order, of mocks as of real functions; None: of all activities."""
        name = None if activity is None else name_of(activity)
        return [call for call in self._entered.crew.calls if name in (None, call.activity)]

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """On the database of the activities, to prepare and to look at what they work with; committed at the end."""
        async with self._entered.sessions.session() as session:
            yield session

    # -- what came out -------------------------------------------------------------------------------------------
    def published(self, type: str | None = None) -> list[PublishedEvent]:
        """Events of this type that workflows and activities published, in order; None: of all types but the engine's
        own."""
        events = self._entered.published
        if type is None:
            return [event for event in events if not event.type.startswith(RESERVED_PREFIX)]
        return [event for event in events if event.type == type]

    async def history(self, instance_id: str | Handle[Any], *, run: int | None = None) -> History:
        found = instance_id.instance_id if isinstance(instance_id, Handle) else instance_id
        return History(tuple(await self._sealer.shown_history(await self._store.history(found, run))))

    @overload
    async def execute(self, workflow: Startable[[], R], /, *, instance_id: str | None = None) -> R: ...
    @overload
    async def execute(self, workflow: Startable[[I], R], input: I, /, *, instance_id: str | None = None) -> R: ...
    @overload
    async def execute(self, workflow: Startable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    async def execute(self, workflow: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Starts an instance and returns its result."""
        handle = await self.start(workflow, *args, **kwargs)
        return await handle.result()

    # -- faults --------------------------------------------------------------------------------------------------
    @property
    def crash_before_each_step(self) -> bool:
        return self._entered.shell.crashes

    @crash_before_each_step.setter
    def crash_before_each_step(self, value: bool) -> None:
        self._entered.shell.crashes = value

    def evict(self) -> None:
        """Drops what is in memory of all instances, as a crash does: what happens next to them replays them."""
        self._entered.shell.restart()
