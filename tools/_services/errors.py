"""The two ways in which a service can be out of reach. Standard library only, touches nothing."""

from __future__ import annotations


class ServiceError(Exception):
    """It is there, but an operation on it failed."""


class Unavailable(ServiceError):
    """This machine cannot have the service at all: no binary, and nothing that may install one."""
