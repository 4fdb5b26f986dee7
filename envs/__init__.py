"""Worlds that robots act in: tasks, instructions, objects, disturbances, experts and annotation."""
