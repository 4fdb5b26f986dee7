"""What the benchmark scenes are made of: which files, from where, which suites need them, and how they get here."""
