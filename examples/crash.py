"""A workflow of six slow steps, to kill its worker in the middle of (see `examples/demo.py`).

romancy init examples.crash:app
romancy start examples.crash:app long_haul --id trip
romancy worker examples.crash:app          (kill -9 it, and start it again)
romancy history examples.crash:app trip
"""

import asyncio

from romancy_stream import App, WorkflowContext

app = App("crash")


@app.activity
async def drive(leg: int) -> str:
    await asyncio.sleep(0.3)
    return f"leg {leg} done"


@app.workflow
async def long_haul(ctx: WorkflowContext) -> list[str]:
    return [await drive(leg) for leg in range(1, 7)]
