"""Build machine: a Hugging Face model becomes a bundle that the runtime opens."""
