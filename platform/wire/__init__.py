"""The forms in which observations and actions travel: msgpack as openpi and vla-eval speak it, and JSON."""
