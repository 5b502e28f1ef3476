"""Real servers for development and tests: Apache Kafka, PostgreSQL, MariaDB, each private to this working copy.

Nothing here is shipped. The package uses the standard library alone, because it has to run before anything is
installed; it may start processes, install packages when it runs as root, and write below its state directory
(see `state.py`).
"""
