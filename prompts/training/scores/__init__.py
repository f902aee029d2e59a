"""When a prompt is sure: temperature, thresholds, what is out of scope."""
