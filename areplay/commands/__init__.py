"""The command `areplay`: its parts, one module each, and the way to them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from areplay.commands import bench

COMMANDS = (bench,)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that was asked for; its exit status."""
    parser = argparse.ArgumentParser(prog="areplay", description="Experience replay for one big machine.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_to(subparsers)
    arguments = parser.parse_args(argv)
    status: int = arguments.run(arguments)
    return status
