"""Benchmarks of areplay: every target of the design as a ratio within one run.

`python -m benchmarks` runs them all, prints a table and writes JSON. `python -m benchmarks --help`
lists the names.
"""
