"""Measurements of a replay on this machine, with rows of any shape: `areplay bench`, and what `benchmarks/` shares.

Each module that is named in `areplay.measures.catalogue` has the same shape: `async def measure(workload, options,
progress) -> Measurement`. What it found is plain data, from which the table, the JSON and the plots are made.
"""
