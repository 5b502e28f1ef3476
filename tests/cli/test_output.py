"""Nothing that stands in a value may steer the terminal or break a table."""

from __future__ import annotations

from datetime import timedelta

import pytest

from romancy_stream.cli import output


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 漢", "plain é 漢"),
        ("two\nlines", "two\\nlines"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x9b31m", "\\u009b31m"),
        ("a\u202eb", "a\\u202eb"),
        ("\x00", "\\x00"),
        ("half \ud800", "half \\ud800"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    assert output.clean(text) == shown


def test_long_text_is_cut() -> None:
    assert output.clean("x" * 10, 10) == "x" * 10
    assert output.clean("x" * 11, 10) == "x" * 9 + "…"


def test_tables_are_plain_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["id", "status"], [["a", "completed"], ["longer [red]", "x" * 300]])
    assert capsys.readouterr().out.splitlines() == [
        "ID            STATUS",
        "a             completed",
        "longer [red]  " + "x" * 300,
    ]


def test_a_terminal_gets_everything_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    output.print_table(["id", "what"], [["i" * 50, "[red]not markup[/red] \x1b[31m " + "w" * 50]])
    shown = capsys.readouterr().out
    assert (shown.count("i"), shown.count("w")) == (51, 51)
    assert "[red]" in shown
    assert "\x1b[31m" not in shown


@pytest.mark.parametrize(
    ("span", "shown"),
    [
        (timedelta(microseconds=999), "0 ms"),
        (timedelta(milliseconds=999), "999 ms"),
        (timedelta(seconds=1.5), "1.500 s"),
        (timedelta(seconds=61), "1 min 1 s"),
        (timedelta(hours=3, minutes=2), "3 h 2 min"),
        (timedelta(days=3, hours=2), "3 d 2 h"),
    ],
)
def test_durations(span: timedelta, shown: str) -> None:
    assert output.duration(span) == shown
