"""Tests. A package, so that every test module reaches the helpers as `tests.support`."""
