"""Turns this process into another program, of a rival's environment. It keeps its id, which is what the CPU time is
read by. Everything but a client writes to the log, whatever it takes for its output."""

from __future__ import annotations

import os
import sys


def main() -> None:
    role, program, *arguments = sys.argv[1:]
    if role != "client":
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    os.execv(program, [program, *arguments])


if __name__ == "__main__":
    main()
