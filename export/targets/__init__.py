"""Graphs for accelerators: fixed sizes, calibrated ranges, one kind a provider."""
