"""Prompts that write: training and reference of decoders."""
