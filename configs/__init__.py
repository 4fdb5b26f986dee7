"""Hydra YAML only: one primary config per command, and the groups they are composed from."""
