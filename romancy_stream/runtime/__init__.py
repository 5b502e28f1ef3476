"""The shell around the core: it reads, prefetches, commits, sends and waits. It decides nothing about workflows."""
