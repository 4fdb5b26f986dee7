"""Policies served to robots."""
