"""Carry a stage of training on Ray Train, and show what it does."""
