"""Children: workflows that a workflow has started, what becomes of them, and of them when it ends. Part of the core."""

from __future__ import annotations
