"""User registration: three activities, one after the other.

python -m examples.user_registration
"""

import asyncio

from pydantic import BaseModel

from romancy_stream import App, WorkflowContext

app = App("users")


class UserInput(BaseModel):
    user_id: str
    email: str
    name: str


class Account(BaseModel):
    account_id: str
    email: str
    name: str


class ProfileSettings(BaseModel):
    theme: str = "light"
    notifications: bool = True


class Profile(BaseModel):
    profile_id: str
    settings: ProfileSettings


class UserResult(BaseModel):
    user_id: str
    account_id: str
    status: str


@app.activity
async def create_database_record(user_id: str, email: str, name: str) -> Account:
    print(f"creating the account of {name}")
    return Account(account_id=f"ACC-{user_id}", email=email, name=name)


@app.activity
async def send_welcome_email(email: str, name: str) -> bool:
    print(f"welcoming {name} at {email}")
    return True


@app.activity
async def create_user_profile(account_id: str, name: str) -> Profile:
    print(f"setting up a profile for {account_id}")
    return Profile(profile_id=f"PROF-{account_id}", settings=ProfileSettings())


@app.workflow
async def user_registration(ctx: WorkflowContext, user: UserInput) -> UserResult:
    account = await create_database_record(user.user_id, user.email, user.name)
    await send_welcome_email(account.email, account.name)
    await create_user_profile(account.account_id, account.name)
    return UserResult(user_id=user.user_id, account_id=account.account_id, status="completed")


async def main() -> None:
    async with app:
        user = UserInput(user_id="123", email="ada@example.com", name="Ada")
        handle = await app.start(user_registration, user)
        print(await handle.result(timeout=30))


if __name__ == "__main__":
    asyncio.run(main())
