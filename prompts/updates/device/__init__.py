"""The device side of updates: a client that trusts its root and nothing else."""
