"""Robot and grounding data on disk, and the samples made from them."""
