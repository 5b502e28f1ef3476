"""Many activities at once with plain `asyncio.gather`: ids are automatic here too.

python -m examples.concurrent_fetch
"""

import asyncio
from dataclasses import dataclass

from romancy_stream import App, WorkflowContext

app = App("fetch")


@dataclass
class Page:
    url: str
    content: str


@app.activity
async def fetch_data(url: str) -> Page:
    await asyncio.sleep(0.05)  # stands for a request
    return Page(url, f"content of {url}")


@app.workflow
async def concurrent_fetch(ctx: WorkflowContext, urls: list[str]) -> list[Page]:
    return await asyncio.gather(*(fetch_data(url) for url in urls))


async def main() -> None:
    async with app:
        handle = await app.start(concurrent_fetch, [f"https://example.com/{n}" for n in range(10)])
        for page in await handle.result(timeout=30):
            print(page.url, len(page.content))


if __name__ == "__main__":
    asyncio.run(main())
