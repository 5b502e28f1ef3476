"""The database: tables, the one bulk commit per dialect, readers and migrations. It knows rows, not workflows."""
