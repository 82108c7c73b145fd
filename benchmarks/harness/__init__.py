"""What all benchmarks have in common: options, turns, figures with their targets, panels, and who
else is busy."""
