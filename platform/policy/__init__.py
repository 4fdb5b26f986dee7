"""The dual-system policy, in plain torch and transformers."""
