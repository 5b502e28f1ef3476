"""Signals and updates from outside to an instance. Part of the core."""

from __future__ import annotations
