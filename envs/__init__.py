"""Hold the simulated tasks: scenes, instructions, experts, annotations, disturbances and suites."""
