"""Watch what is served: metrics, audit log, and the fleet page."""
