"""The workloads of these benchmarks on other engines of the kind, in turns with ours. See README.md."""
