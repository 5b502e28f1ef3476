"""The workflow that is measured: three steps that do nothing. Where it runs comes from ROMANCY_NAMESPACE,
ROMANCY_BROKER and ROMANCY_DATABASE, so that the same app is engine, worker and client, each in its process."""

from benchmarks.settings import PARTITIONS
from romancy_stream import App, WorkflowContext

app = App(partitions=PARTITIONS)


@app.activity
async def step(number: int) -> int:
    return number


@app.workflow
async def three_steps(ctx: WorkflowContext, number: int) -> int:
    return await step(await step(await step(number)))
