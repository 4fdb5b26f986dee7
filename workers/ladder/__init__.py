"""Climb the paper's ladder: train and compare its four arms."""
