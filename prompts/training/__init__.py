"""Trains prompts in PyTorch against the frozen model."""
