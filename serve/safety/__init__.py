"""Keep actions within what a robot may do; run on both ends of the wire."""
