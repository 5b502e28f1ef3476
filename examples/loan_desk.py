"""A loan that a human decides: the workflow waits for as long as that takes. The desk asks how far it is (query), says
what it thinks (signal), and changes the amount (update), which is checked before and answered after.

python -m examples.loan_desk
"""

import asyncio

from pydantic import BaseModel

from romancy_stream import App, UpdateRejectedError, WorkflowContext, query, signal, update

app = App("loan_desk")


class Application(BaseModel):
    customer: str
    amount: int


class Decision(BaseModel):
    customer: str
    amount: int
    approved_by: list[str]


@app.activity
async def check_limit(customer: str, amount: int) -> bool:
    return amount <= 10_000


@app.activity
async def pay_out(customer: str, amount: int) -> None:
    print(f"{amount} for {customer}")


@app.workflow
class Loan:
    def __init__(self) -> None:
        self.amount = 0
        self.approved_by: list[str] = []

    async def run(self, ctx: WorkflowContext, application: Application) -> Decision:
        self.amount = application.amount
        await ctx.wait_condition(lambda: len(self.approved_by) >= 2, timeout=7 * 86_400)
        await pay_out(application.customer, self.amount)
        return Decision(customer=application.customer, amount=self.amount, approved_by=self.approved_by)

    @signal
    def approve(self, by: str) -> None:
        if by not in self.approved_by:
            self.approved_by.append(by)

    @query
    def progress(self) -> str:
        return f"{self.amount}, approved by {len(self.approved_by)} of 2"

    @update
    async def change_amount(self, customer: str, amount: int) -> int:
        if await check_limit(customer, amount):
            self.approved_by.clear()
            self.amount = amount
        return self.amount

    @change_amount.validator
    def check_amount(self, customer: str, amount: int) -> None:
        if amount <= 0:
            raise ValueError("an amount is more than nothing")


async def main() -> None:
    async with app:
        loan = await app.start(Loan, Application(customer="Ada", amount=5_000))
        await loan.signal(Loan.approve, "ben")
        print("changed to", await loan.update(Loan.change_amount, "Ada", 6_000))
        try:
            await loan.update(Loan.change_amount, "Ada", 0)
        except UpdateRejectedError as error:
            print("refused:", error.__cause__)
        print(await loan.query(Loan.progress))
        for manager in ("ben", "eve"):
            await loan.signal(Loan.approve, manager)
        print(await loan.result(timeout=30))


if __name__ == "__main__":
    asyncio.run(main())
