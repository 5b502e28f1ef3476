"""`worker`: an app as a process. The only place where signals are handled and logging is set up."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from romancy_stream.cli import output, setup
from romancy_stream.cli.interpreter import set_up_interpreter, watch_memory
from romancy_stream.cli.running import described, opened_store
from romancy_stream.cli.target import Target
from romancy_stream.cli.throttle import Throttle
from romancy_stream.errors import RomancyError
from romancy_stream.runtime.roles import ROLES, Role

if TYPE_CHECKING:
    from romancy_stream.app import App

UVLOOP_BELOW: Final = (3, 14)
"""uvloop is used by itself where our tests ran with it; `--loop uvloop` asks for it elsewhere."""
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

log = logging.getLogger("romancy_stream.worker")


class OneLine(logging.Formatter):
    """A record is one line, its traceback too."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n")


def worker(
    app: Target,
    roles: Annotated[str, typer.Option("--roles", help="What this process does: engine, worker or both.")] = ",".join(
        ROLES
    ),
    queues: Annotated[
        str | None, typer.Option("--queues", help="Task queues to serve, with commas; all of the app by default.")
    ] = None,
    no_init: Annotated[
        bool, typer.Option("--no-init", help="Create no topics and apply no migrations; they must be there.")
    ] = False,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option("--log-level", help="What is logged to stderr.")
    ] = "info",
    loop: Annotated[
        Literal["auto", "asyncio", "uvloop"],
        typer.Option("--loop", help="The event loop; auto takes uvloop where it is installed."),
    ] = "auto",
) -> None:
    """Run the app until SIGTERM or SIGINT; a second signal leaves at once.

    Leaving lets activities that are under way finish for a while. What is not done by then is done again elsewhere.
    """
    chosen_roles = _roles(roles)
    chosen_queues = None if queues is None else _queues(app, queues)
    _set_up_logging(log_level)
    set_up_interpreter()
    try:
        with asyncio.Runner(loop_factory=_loop_factory(loop)) as runner:
            runner.run(Process(app, chosen_roles, chosen_queues, not no_init).run())
    except Exception as error:
        if output.debug() or not isinstance(error, RomancyError):
            raise
        output.fail(described(error))


def _roles(text: str) -> tuple[Role, ...]:
    wanted = {name.strip() for name in text.split(",")}
    if unknown := wanted - set(ROLES):
        raise typer.BadParameter(f"--roles: {', '.join(sorted(unknown)) or 'nothing'!r}; there are {', '.join(ROLES)}")
    return tuple(role for role in ROLES if role in wanted)


def _queues(app: App, text: str) -> tuple[str, ...]:
    wanted = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if unknown := [name for name in wanted if name not in app.queues]:
        raise typer.BadParameter(f"--queues: the app has no queue {', '.join(unknown)}; it has {', '.join(app.queues)}")
    return wanted


def _set_up_logging(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(Throttle())
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _loop_factory(wanted: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    usable = sys.version_info < UVLOOP_BELOW and importlib.util.find_spec("uvloop") is not None
    if wanted == "asyncio" or (wanted == "auto" and not usable):
        return None
    try:
        import uvloop
    except ImportError:
        raise typer.BadParameter("--loop uvloop: it is not installed: pip install 'romancy-stream[uvloop]'") from None
    return uvloop.new_event_loop


class Process:
    """One run of an app between its start and the first signal, or its failure."""

    def __init__(self, app: App, roles: Sequence[Role], queues: Sequence[str] | None, initialise: bool) -> None:
        self._app = app
        self._roles = roles
        self._queues = queues
        self._initialise = initialise
        self._stop = asyncio.Event()
        self._starting: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Returns after a signal; raises what stopped the app for good."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._signalled, number)
        watch_memory(loop)
        async with contextlib.AsyncExitStack() as leaving:
            self._starting = asyncio.create_task(self._start(leaving))
            try:
                await self._starting
            except asyncio.CancelledError:
                if not self._stop.is_set():
                    raise
                log.info("stopped before it was started")
                return
            finally:
                self._starting = None
            await self._until_stopped()
            log.info("leaving: waiting for what is under way")
        log.info("stopped")

    async def _start(self, leaving: contextlib.AsyncExitStack) -> None:
        from sqlalchemy import make_url

        if not self._initialise:
            async with opened_store(self._app):
                pass  # says so where there are no tables
        elif self._queues is not None:
            await setup.make_ready(self._app)  # the engine sends to queues that this process does not serve
        running = self._app.running(roles=self._roles, queues=self._queues, initialise=self._initialise)
        await leaving.enter_async_context(running)
        served = ", ".join(self._queues or self._app.queues)
        log.info("app %s runs as %s, queues: %s", self._app.namespace, " and ".join(self._roles), served)
        log.info("broker %s, database %s", self._app.broker_url, make_url(self._app.database_url).render_as_string())

    async def _until_stopped(self) -> None:
        stopped = asyncio.create_task(self._stop.wait())
        failed = asyncio.create_task(self._app.wait_failed())
        try:
            await asyncio.wait([stopped, failed], return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                failed.result()
        finally:
            for task in (stopped, failed):
                task.cancel()
            await asyncio.gather(stopped, failed, return_exceptions=True)

    def _signalled(self, number: signal.Signals) -> None:
        if self._stop.is_set():
            log.warning("%s again: leaving at once", number.name)
            logging.shutdown()
            os._exit(128 + number)
        log.info("%s: stopping", number.name)
        self._stop.set()
        if self._starting is not None:
            self._starting.cancel()
