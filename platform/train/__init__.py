"""Hold the training step: optimiser, DeepSpeed engine, loop, validation; plain torch, without Ray or Hydra."""
