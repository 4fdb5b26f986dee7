"""SimplerEnv on ManiSkill 3: the original's tasks, robots, controllers, contact predicates and pictures."""
