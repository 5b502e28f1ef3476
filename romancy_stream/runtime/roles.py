"""What a process may do for an app. Apart from what does it, which takes long to load."""

from __future__ import annotations

from typing import Final, Literal

Role = Literal["engine", "worker"]
ROLES: Final[tuple[Role, ...]] = ("engine", "worker")
