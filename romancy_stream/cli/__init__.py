"""The command line. Everything here is a thin layer over the public API and the store; importing it imports no
user code and connects to nothing."""

from romancy_stream.cli.commands import cli, main

__all__ = ["cli", "main"]
