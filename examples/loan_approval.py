"""Decisions in a workflow: an ordinary `if` on the result of an activity.

python -m examples.loan_approval
"""

import asyncio
from typing import Literal

from pydantic import BaseModel

from romancy_stream import App, WorkflowContext

app = App("loans")


class CreditReport(BaseModel):
    score: int


class LoanResult(BaseModel):
    applicant_id: str
    status: Literal["approved", "rejected"]


@app.activity
async def check_credit(applicant_id: str) -> CreditReport:
    return CreditReport(score=720 if applicant_id.startswith("good") else 580)


@app.activity
async def approve(applicant_id: str) -> LoanResult:
    return LoanResult(applicant_id=applicant_id, status="approved")


@app.activity
async def reject(applicant_id: str) -> LoanResult:
    return LoanResult(applicant_id=applicant_id, status="rejected")


@app.workflow
async def loan_approval(ctx: WorkflowContext, applicant_id: str) -> LoanResult:
    credit = await check_credit(applicant_id)
    if credit.score >= 700:
        return await approve(applicant_id)
    return await reject(applicant_id)


async def main() -> None:
    async with app:
        for applicant in ("good-1", "other-2"):
            handle = await app.start(loan_approval, applicant)
            print(await handle.result(timeout=30))


if __name__ == "__main__":
    asyncio.run(main())
