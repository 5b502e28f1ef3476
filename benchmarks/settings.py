"""What both sides of a comparison have in common, and every limit of a benchmark with its reason."""

from typing import Final

PARTITIONS: Final = 8
"""An app's default."""
PARTITIONS_VARIABLE: Final = "BENCH_PARTITIONS"
"""Tells the app's processes of another number."""
STEPS: Final = 3
WARM_UP: Final = 500
"""Workflows before the first measurement: connections, prepared statements, the broker's JIT."""
ANSWER_LIMIT_S: Final = 120.0
"""A workflow that takes this long never ends."""
STARTS_AT_ONCE: Final = 500
"""Starts of a burst that are under way together; a client with more of them only fills its own buffers."""
