"""The publishing side of updates: keys, signed metadata, static files."""
