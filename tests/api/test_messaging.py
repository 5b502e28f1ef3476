"""Channels as callers see them: what is refused before anything is sent, and what tests of activities see."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel

from romancy_stream import ActivityContext, App, ConfigurationError, PayloadError, PayloadTooLargeError, activity
from romancy_stream.engine.messages import METADATA_BYTES, Message, ReceivedMessage, encode_metadata
from romancy_stream.testing import activity_context


class Note(BaseModel):
    text: str


@activity
async def tell(ctx: ActivityContext, text: str) -> None:
    ctx.publish("notes", Note(text=text), {"by": "test"})
    ctx.publish_event(type="note.told")


async def test_activities_publish_in_tests() -> None:
    with activity_context() as tested:
        await tell("hello")
    assert tested.messages == [("notes", {"text": "hello"})]
    assert tested.published == [("note.told", None)]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"channel": ""}, ValueError),
        ({"channel": "x" * 201}, ValueError),
        ({"channel": "a\tb"}, ValueError),
        ({"channel": 7}, TypeError),
        ({"channel": "notes", "data": object()}, PayloadError),
        ({"channel": "notes", "data": float("nan")}, PayloadError),
        ({"channel": "notes", "metadata": ["a"]}, TypeError),
        ({"channel": "notes", "metadata": {"a": "\0"}}, PayloadError),
        ({"channel": "notes", "metadata": {"a": "x" * METADATA_BYTES}}, PayloadTooLargeError),
    ],
)
async def test_what_cannot_be_a_message_is_refused_at_the_call(
    arguments: dict[str, Any], error: type[Exception]
) -> None:
    app = App("refusing")
    with pytest.raises(error):
        await app.publish(**arguments)
    with pytest.raises(error):
        await app.send_to("i", **arguments)
    with activity_context() as tested, pytest.raises(error):
        tested.ctx.publish(**arguments)
    assert not tested.messages


async def test_a_message_needs_an_app_that_is_entered_and_an_instance_to_go_to() -> None:
    app = App("outside")
    with pytest.raises(ConfigurationError, match="not entered"):
        await app.publish("notes", 1)
    with pytest.raises(ValueError, match="instance_id"):
        await app.send_to("", "notes", 1)


def test_a_message_keeps_what_it_was_given() -> None:
    metadata = {"n": 10**30, "ä": [None]}
    message = Message("notes", "m-1", "i", encode_metadata(metadata), 1_500_000, b"1.10")
    again = Message.of(message.attrs(), message.payload)
    assert again == message
    assert again.received(1) == ReceivedMessage(
        "notes", 1, "m-1", "i", metadata, datetime(1970, 1, 1, 0, 0, 1, 500_000, UTC)
    )
    assert encode_metadata({}) is None
    assert Message.of({"channel": "c", "id": "m", "sent_us": 0}, None).received(None).metadata == {}
