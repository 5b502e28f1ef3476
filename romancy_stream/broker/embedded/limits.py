"""Every limit of the embedded broker, with its reason. Constants only."""

from __future__ import annotations

from typing import Final

# Kafka's default for a record. A topic's `max.message.bytes` overrides it, as there.
RECORD_BYTES_LIMIT: Final = 1_048_576

# What may wait for the disk before `send` waits, the size of a Kafka producer's buffer. One transaction is no larger.
BUFFER_BYTES_LIMIT: Final = 32 * 1_048_576

# What a record costs in the buffer and in the tail beyond its key and value: headers and Python objects.
RECORD_OVERHEAD_BYTES: Final = 512

# A chunk is what one row of the file holds and what a reader takes at least. Large enough that the row costs nothing
# per record, small enough that reading one record of it from disk is no burden.
CHUNK_RECORDS_LIMIT: Final = 1_000
CHUNK_BYTES_LIMIT: Final = 1_048_576

# The newest records stay in memory for readers that keep up; one that lags reads the file. More would only make
# every full garbage collection slower.
TAIL_RECORDS_LIMIT: Final = 20_000
TAIL_BYTES_LIMIT: Final = 32 * 1_048_576

# What one delivery holds at most. Reached only in catching up; the engine makes one transaction of a delivery.
BATCH_RECORDS_LIMIT: Final = 2_000
BATCH_BYTES_LIMIT: Final = 16 * 1_048_576

# Rows of one INSERT. All rows of a usual commit fit; each further statement would be another wait for the interpreter
# lock when the event loop is busy. SQLite allows 32,766 parameters, 4 to a row.
ROWS_PER_STATEMENT: Final = 64

# A disk that has not synced by then is treated as broken. As long as a Kafka producer waits (request.timeout.ms).
DELIVERY_LIMIT_S: Final = 30.0

# How long `close` waits for the disk. A thread that hangs in a system call cannot be ended.
CLOSE_LIMIT_S: Final = 10.0

# Positions that nobody waits for ride on the next append; without one they are written after this.
HINT_DELAY_S: Final = 1.0

# What every group has read is deleted after a week, as Kafka does, or when the file is larger than this.
RETENTION_S: Final = 7 * 24 * 3600.0
RETENTION_BYTES: Final = 1 << 30

# Deleting runs when the log is opened and after that many chunks, and holds the disk for that many chunks at a time.
TRIM_EVERY_CHUNKS: Final = 20_000
TRIM_CHUNKS_PER_PASS: Final = 500

# Distinct sequences of header names whose encoding is remembered. One program has a dozen.
HEADER_NAMES_CACHE_LIMIT: Final = 1_024

# Offsets of one partition; the row id of a chunk is partition number times this plus the offset of its first record.
PARTITION_SPAN: Final = 1 << 40
