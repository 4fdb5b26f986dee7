"""Evaluate a policy: `st4vla eval`, the plan, the ledger and the runs between them."""
