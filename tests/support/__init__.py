"""Helpers that any test may use: wait for a condition, reach the real servers, make a database of one's own.

No assertion about the product lives here.
"""

from tests.support.collecting import without_collector
from tests.support.databases import fresh_mariadb, fresh_postgres
from tests.support.servers import ServiceMissing, ensure_service, services, services_command
from tests.support.waiting import eventually

__all__ = [
    "ServiceMissing",
    "ensure_service",
    "eventually",
    "fresh_mariadb",
    "fresh_postgres",
    "services",
    "services_command",
    "without_collector",
]
