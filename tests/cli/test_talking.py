"""signal, update, query, versions: in this process, on the embedded broker and SQLite."""

from __future__ import annotations

import pytest

from romancy_stream.app import App
from tests.cli.conftest import Project
from tests.support import eventually

SOURCE = """


@app.workflow(version="1")
async def loan(ctx: WorkflowContext, customer: str) -> str:
    ctx.state.by, ctx.state.amount = None, 0
    await ctx.wait_condition(lambda: ctx.state.by)
    return f"{customer}: {ctx.state.amount} by {ctx.state.by}"


@loan.signal
def approve(ctx: WorkflowContext, by: str) -> None:
    ctx.state.by = by


@loan.query
def amount(ctx: WorkflowContext, times: int = 1) -> int:
    return ctx.state.amount * times


@loan.update
def raise_to(ctx: WorkflowContext, amount: int) -> dict[str, int]:
    before, ctx.state.amount = ctx.state.amount, amount
    return {"before": before, "after": amount}


@raise_to.validator
def check(ctx: WorkflowContext, amount: int) -> None:
    if amount <= ctx.state.amount:
        raise ValueError("that is no raise")
"""


@pytest.fixture
def loans(project: Project) -> Project:
    with (project.folder / f"{project.module}.py").open("a") as file:
        file.write(SOURCE)
    project.run("start", "@", "loan", "--input", '"anna"', "--id", "l-1", "--on-conflict", "fail")
    return project


def test_talking_to_an_instance(loans: Project) -> None:
    assert loans.run("query", "@", "l-1", "amount").out == "0\n"
    assert loans.run("update", "@", "l-1", "raise_to", "500").out == '{"before":0,"after":500}\n'
    assert loans.run("query", "@", "l-1", "amount", "2").out == "1000\n"
    assert loans.run("signal", "@", "l-1", "approve", '"ben"').out == ""

    async def wait(app: App) -> object:
        return await app.handle("l-1").result(30)

    assert loans.working(wait) == "anna: 500 by ben"
    assert loans.run("query", "@", "l-1", "amount").out == "500\n"


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["update", "@", "l-1", "raise_to", "0"], 1, "ValueError: that is no raise [update_rejected]"),
        (["update", "@", "l-1", "raise_to", '"x"'], 1, "[invalid_input]"),
        (["update", "@", "l-1", "approve", '"x"'], 1, "it has raise_to [unknown_handler]"),
        (["update", "@", "l-2", "raise_to", "1"], 1, "[instance_not_found]"),
        (["signal", "@", "l-1", "approve", "5"], 1, "[invalid_input]"),
        (["signal", "@", "l-1", "amount"], 1, "it has approve [unknown_handler]"),
        (["signal", "@", "l-1", "approve", "{"], 2, "the argument is not JSON"),
        (["query", "@", "l-1", "approve"], 1, "it has amount [unknown_handler]"),
        (["query", "@", "l-1", "amount", '"x"'], 1, "[invalid_input]"),
        (["query", "@", "l-2", "amount"], 1, "[instance_not_found]"),
    ],
)
def test_what_goes_wrong_is_one_line(loans: Project, command: list[str], code: int, said: str) -> None:
    answer = loans.run(*command, ok=False)
    assert (answer.code, answer.out) == (code, "")
    assert said in answer.err
    assert "Traceback" not in answer.err


def test_a_signal_to_an_id_that_nobody_knows_yet_is_sent_with_a_warning(loans: Project) -> None:
    assert "no instance has the id 'l-9' yet" in loans.run("signal", "@", "l-9", "approve", '"x"').err

    async def kept(app: App) -> list[str]:
        async def one() -> bool:
            return bool(await app.dead_letters())

        await eventually(one, deadline_s=30)
        return [letter.reason for letter in await app.dead_letters()]

    assert loans.working(kept) == ["unknown_instance"]


def test_versions(loans: Project) -> None:
    found = {each["workflow_name"]: each for each in loans.run("versions", "@", "--json").json}
    assert found["loan"] == {
        "workflow_name": "loan",
        "version": "1",
        "open_instances": 1,
        "parked": 0,
        "is_here": True,
        "is_default": True,
    }
    assert found["echo"]["version"] is None
    table = [line.split() for line in loans.run("versions", "@").out.splitlines()]
    assert table[0] == ["WORKFLOW", "VERSION", "OPEN", "PARKED", "HERE"]
    assert ["loan", "1", "1", "0", "default"] in table
