"""The fixture, in projects of their own."""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import entry_points

import pytest

from tests.support.modules import REPO

pytest_plugins = ["pytester"]

TESTS = """
import pytest
from romancy_stream import App, WorkflowContext

app = App("plugged")

@app.workflow
async def nap(ctx: WorkflowContext, days: int) -> int:
    await ctx.sleep(days * 86_400)
    return days
"""
CONFTEST = """
import pytest
from naps import app

@pytest.fixture
def romancy_app():
    return app
"""


@pytest.fixture(autouse=True)
def _project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "naps", raising=False)
    pytester.syspathinsert()
    pytester.makepyfile(naps=TESTS)
    pytester.makepyprojecttoml(
        '[tool.pytest.ini_options]\nasyncio_mode = "auto"\nfilterwarnings = ["error"]\n'
        'asyncio_default_fixture_loop_scope = "function"\n'
    )


PLUGIN = "romancy_stream.testing.plugin"
INSTALLED = any(each.value == PLUGIN for each in entry_points(group="pytest11"))


def _run(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    """In a process of its own, where nothing is loaded yet."""
    by_name = () if INSTALLED else ("-p", PLUGIN)  # an installation from before there was an entry point
    return pytester.runpytest_subprocess(*by_name, *args)


def test_the_entry_point_is_declared() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"romancy_stream": PLUGIN}


def test_the_fixture_is_entered_and_each_test_has_its_own(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(
        test_naps="""
        import pytest
        from naps import app, nap

        @pytest.mark.parametrize("days", [1, 2])
        async def test_a_nap(romancy_env, days):
            handle = await romancy_env.start(nap, days)
            assert handle.instance_id == "nap-1"
            assert await handle.result() == days

        @pytest.mark.romancy(auto_skip=False, crashes="every-step")
        async def test_options(romancy_env):
            assert romancy_env.crash_before_each_step
            handle = await romancy_env.start(nap, 1)
            await romancy_env.sleep(days=1)
            assert await handle.result() == 1
        """
    )
    _run(pytester, "--strict-markers").assert_outcomes(passed=3)


def test_a_failed_test_in_disorder_tells_its_seed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_naps="""
        import pytest
        from naps import app, nap

        @pytest.mark.romancy(app, disorder=True, seed=4711)
        async def test_a_nap(romancy_env):
            assert await romancy_env.execute(nap, 1) == 2
        """
    )
    result = _run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*- romancy -*", "*disorder=True, seed=4711*"])


def test_without_an_app_it_says_what_to_do(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("async def test_nothing(romancy_env): ...")
    result = _run(pytester)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*define a fixture romancy_app in conftest.py*"])


def test_the_plugin_loads_no_engine(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_loaded():
            assert "romancy_stream.testing.plugin" in sys.modules
            assert not {"sqlalchemy", "pydantic", "romancy_stream.app"} & sys.modules.keys()
        """
    )
    _run(pytester).assert_outcomes(passed=1)
