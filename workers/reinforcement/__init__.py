"""Improve a policy with RLlib."""
