"""Translates what aiokafka raises into the errors of the `Broker` port, so that nobody above needs to know its
classes. It touches nothing.
"""

from __future__ import annotations

import asyncio

from aiokafka import errors as kafka

from romancy_stream.errors import BrokerUnavailableError, ConfigurationError, RomancyError

NOT_ALLOWED = (
    kafka.TopicAuthorizationFailedError,
    kafka.GroupAuthorizationFailedError,
    kafka.ClusterAuthorizationFailedError,
    kafka.TransactionalIdAuthorizationFailed,
    kafka.SaslAuthenticationFailed,
    kafka.UnsupportedSaslMechanismError,
    kafka.IllegalSaslStateError,
)
# The broker will answer the same to this record or batch for ever.
REFUSALS = (
    kafka.MessageSizeTooLargeError,
    kafka.RecordListTooLargeError,
    kafka.InvalidTimestampError,
    kafka.InvalidTopicError,
    kafka.TopicAuthorizationFailedError,
    kafka.ClusterAuthorizationFailedError,
    kafka.PolicyViolationError,
    kafka.UnsupportedForMessageFormatError,
)
# What the client library says of records that it will fail to read for ever. It also fails with errors of Python's own.
UNREADABLE = (kafka.CorruptRecordException, kafka.UnsupportedCodecError, kafka.RecordTooLargeError)


def is_refusal(error: BaseException) -> bool:
    return isinstance(error, REFUSALS)


def translated(error: BaseException, doing: str) -> BaseException:
    """The same error when it is ours or not Kafka's; `doing` begins the message otherwise."""
    if isinstance(error, RomancyError):
        return error
    if isinstance(error, NOT_ALLOWED):
        return ConfigurationError(f"{doing}: not allowed: {describe(error)}")
    if isinstance(error, (kafka.KafkaError, OSError, asyncio.TimeoutError)):
        return BrokerUnavailableError(f"{doing}: {describe(error)}")
    return error


def describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def concerns_topic(error: BaseException) -> bool:
    """Every record for that topic would be refused."""
    return isinstance(
        error,
        (kafka.InvalidTopicError, kafka.TopicAuthorizationFailedError, kafka.ClusterAuthorizationFailedError),
    )
