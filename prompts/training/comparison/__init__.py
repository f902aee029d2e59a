"""What a prompt is compared with: weights that are trained."""
