"""Tests of the wire codec and of the public contract `topics/`."""
