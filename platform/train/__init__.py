"""The training step: losses, optimiser groups, schedule and validation metrics."""
