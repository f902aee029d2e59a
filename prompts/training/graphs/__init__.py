"""Training on a bundle's own graph, with the rounding that the device has."""
