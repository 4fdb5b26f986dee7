"""Run a policy's two systems with nothing in the way: one engine for evaluation, reinforcement and serving."""
