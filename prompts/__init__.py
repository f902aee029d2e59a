"""The prompt artifact: its format, and where it comes from."""
