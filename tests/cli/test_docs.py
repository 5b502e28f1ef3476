"""docs/cli.md names every command and every option, and none that does not exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from romancy_stream.cli import cli

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def commands(group: Any, prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        whole = f"{prefix} {name}"
        found |= commands(command, whole) if hasattr(command, "commands") else {whole: command}
    return found


COMMANDS = commands(typer.main.get_command(cli), "romancy")


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.+)$", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def options(command: Any) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts if name.startswith("--")}


def test_every_command_has_a_section_and_every_section_a_command() -> None:
    assert set(sections()) == set(COMMANDS)
    assert len(COMMANDS) > 12


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_row_and_every_row_an_option(name: str) -> None:
    rows = set(re.findall(r"^\| `(--[a-z-]+)` \|", sections()[name], flags=re.MULTILINE))
    assert rows == options(COMMANDS[name]) - {"--help"}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_usage_names_the_arguments(name: str) -> None:
    arguments = [p for p in COMMANDS[name].params if p.param_type_name == "argument"]
    usage = " ".join([name, *(p.metavar or p.name.upper() for p in arguments)])
    assert f"`{usage}`" in sections()[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_everything_has_a_help_text(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    assert all(p.help for p in command.params if p.param_type_name == "option"), name


def test_options_in_the_text_exist() -> None:
    known = {"--help", "--version", "--debug"}.union(*(options(command) for command in COMMANDS.values()))
    assert set(OPTION.findall(PAGE.read_text("utf-8"))) <= known
