"""The machine and the process: CPUs, mounts, signals, ranks, progress. Knows no tensors."""
