"""areplay beside its peers: the same work, in the same run, turn by turn, each in an environment of
its own.

`python -m benchmarks.peers` makes the environments, measures, and writes tables, JSON and plots.
`python -m benchmarks.peers --help` lists what can be chosen.
"""
