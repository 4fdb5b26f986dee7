"""Record what is served as LeRobot datasets, off the path of the answers."""
