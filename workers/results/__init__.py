"""Turn rows of episodes into rates, intervals, comparisons, tables and reports."""
