"""Published checkpoints in and out: InternVLA-M1's run folders, and plain Qwen-VL folders."""
