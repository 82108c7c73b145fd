"""Shared memory and what touches the operating system: segments, locks, doorbells, memory order,
limits."""
