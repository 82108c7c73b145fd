"""Child processes: one child, the supervisor of several, the one way to wait, and named points of
failure."""
