"""Device: opens a bundle and answers for many prompts on the one model."""
