"""Measurements of a replay with rows of any shape: `python -m benchmarks.row`, or
`make bench-row ROW=7056`.

Each module that `benchmarks.row.catalogue` names has the same shape:
`async def measure(workload, options, progress) -> Measurement`. What it found is plain data, from
which the table, the JSON and the plots are made.
"""
