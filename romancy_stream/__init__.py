"""Durable workflows on an event log."""
