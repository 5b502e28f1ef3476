"""The parts of the Kafka broker that need no Kafka: settings, errors, the watchdog."""

from __future__ import annotations

import pytest
from aiokafka import errors as kafka

from romancy_stream.broker.kafka import KafkaBroker, KafkaSettings
from romancy_stream.broker.kafka.faults import concerns_topic, is_refusal, translated
from romancy_stream.broker.kafka.seam import check_position
from romancy_stream.broker.kafka.settings import FROM_URL, from_url
from romancy_stream.broker.kafka.watchdog import StallDetector
from romancy_stream.broker.port import TP
from romancy_stream.errors import BrokerUnavailableError, ConfigurationError, LogIdentityError

A, B = TP("t", 0), TP("t", 1)


@pytest.mark.parametrize("url", ["kafka://one:9092,two:9093", "one:9092,two:9093", "kafka://one:9092,two:9093/"])
def test_several_servers(url: str) -> None:
    assert from_url(url, None, {}) == ("one:9092,two:9093", KafkaSettings())


@pytest.mark.parametrize("url", ["", "kafka://", "http://one:9092"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ConfigurationError, match="kafka://host:port"):
        from_url(url, None, {})


def test_credentials_in_the_url_are_refused_because_urls_are_logged() -> None:
    with pytest.raises(ConfigurationError, match="ROMANCY_KAFKA_PASSWORD") as caught:
        from_url("kafka://me:secret@one:9092", None, {})
    assert "secret" not in str(caught.value)


def test_the_url_wins_over_the_environment_and_that_over_the_settings() -> None:
    environ = {"ROMANCY_KAFKA_USERNAME": "env", "ROMANCY_KAFKA_PASSWORD": "secret", "ROMANCY_KAFKA_CAFILE": "/env.pem"}
    settings = KafkaSettings(cafile="/mine.pem", session_timeout_ms=9_000)
    url = "kafka://one:9092?security_protocol=SASL_SSL&sasl_mechanism=SCRAM-SHA-512&username=url"
    bootstrap, found = from_url(url, settings, environ)
    assert bootstrap == "one:9092"
    assert found == KafkaSettings(
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        username="url",
        password="secret",
        cafile="/env.pem",
        session_timeout_ms=9_000,
    )
    assert "secret" not in repr(found)


def test_numbers_in_the_url() -> None:
    _, found = from_url("kafka://one:9092?session_timeout_ms=6000&heartbeat_interval_ms=500", None, {})
    assert found == KafkaSettings(session_timeout_ms=6_000, heartbeat_interval_ms=500)


@pytest.mark.parametrize("value", ["soon", "1.5", "0", "-6000"])
def test_what_is_no_number_of_milliseconds(value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"session_timeout_ms must be .*, not .*{value}"):
        from_url(f"kafka://one:9092?session_timeout_ms={value}", None, {})


def test_an_unknown_setting_in_the_url_is_named_with_those_that_are_known() -> None:
    with pytest.raises(ConfigurationError, match="acks; known: " + ", ".join(FROM_URL)):
        from_url("kafka://one:9092?acks=1", None, {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"security_protocol": "TLS"}, "TLS"),
        ({"security_protocol": "SASL_PLAINTEXT", "username": "me"}, "ROMANCY_KAFKA_PASSWORD"),
        ({"heartbeat_interval_ms": 6_000}, "half of session_timeout_ms"),
    ],
)
def test_settings_that_cannot_work(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        KafkaSettings(**changes)  # type: ignore[arg-type]


def test_sasl_and_tls_reach_the_client(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = KafkaSettings("SASL_SSL", "SCRAM-SHA-256", "me", "secret")
    arguments = settings.client()
    assert arguments["ssl_context"].check_hostname
    assert (arguments["sasl_plain_username"], arguments["sasl_plain_password"]) == ("me", "secret")
    assert "ssl_context" not in KafkaSettings().client()


def test_a_broker_is_bound_to_no_loop_before_it_is_opened() -> None:
    assert KafkaBroker("kafka://one:9092", client_id="c").bootstrap == "one:9092"


# -- errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (kafka.KafkaConnectionError("gone"), BrokerUnavailableError),
        (kafka.NodeNotReadyError(), BrokerUnavailableError),
        (ConnectionRefusedError(), BrokerUnavailableError),
        (TimeoutError(), BrokerUnavailableError),
        (kafka.GroupAuthorizationFailedError("g"), ConfigurationError),
        (LogIdentityError("x"), LogIdentityError),
        (KeyError("x"), KeyError),
    ],
)
def test_translation(error: Exception, kind: type[Exception]) -> None:
    assert type(translated(error, "reading")) is kind


def test_refusals() -> None:
    assert is_refusal(kafka.MessageSizeTooLargeError())
    assert not is_refusal(kafka.NotLeaderForPartitionError())
    assert not is_refusal(kafka.OutOfOrderSequenceNumber())
    assert concerns_topic(kafka.TopicAuthorizationFailedError("t"))
    assert not concerns_topic(kafka.MessageSizeTooLargeError())


@pytest.mark.parametrize("position", [3, 7, 10])
def test_positions_inside_the_log(position: int) -> None:
    check_position(A, position, 3, 10)


@pytest.mark.parametrize(("position", "text"), [(2, "retention deleted"), (11, "deleted and made again")])
def test_positions_outside_the_log_name_the_way_out(position: int, text: str) -> None:
    with pytest.raises(LogIdentityError, match=text):
        check_position(A, position, 3, 10)


# -- watchdog ------------------------------------------------------------------------------------------------


def test_a_position_that_stands_still_while_records_wait_is_a_stall() -> None:
    detector = StallDetector(limit_s=10)
    assert detector.observe({A: (5, 8), B: (1, 1)}, now_s=0) == []
    assert detector.observe({A: (5, 9), B: (1, 1)}, now_s=9.9) == []
    assert detector.observe({A: (5, 9), B: (1, 1)}, now_s=10) == [A]


def test_any_progress_begins_the_time_anew() -> None:
    detector = StallDetector(limit_s=10)
    detector.observe({A: (5, 8)}, now_s=0)
    assert detector.observe({A: (6, 8)}, now_s=11) == []
    assert detector.observe({A: (6, 8)}, now_s=20) == []
    assert detector.observe({A: (6, 8)}, now_s=21) == [A]


@pytest.mark.parametrize("between", [{}, {A: (8, 8)}, {B: (0, 1)}])
def test_what_was_idle_held_or_away_in_between_begins_anew(between: dict[TP, tuple[int, int]]) -> None:
    detector = StallDetector(limit_s=10)
    detector.observe({A: (5, 8)}, now_s=0)
    detector.observe(between, now_s=5)
    assert detector.observe({A: (5, 8)}, now_s=12) == []
    assert detector.observe({A: (5, 8)}, now_s=22) == [A]


def test_forget() -> None:
    detector = StallDetector(limit_s=10)
    detector.observe({A: (5, 8)}, now_s=0)
    detector.forget()
    assert detector.observe({A: (5, 8)}, now_s=10) == []
