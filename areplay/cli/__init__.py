"""The command `areplay`: its subcommands and their options.

Each subcommand is a module of this folder with a function `add_to(subparsers)`. That adds a parser
and sets its default `run` to a function, which takes the parsed arguments and returns the exit
status. No other folder of the package prints.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

import areplay
from areplay.cli import doctor, inspect, top
from areplay.errors import AreplayError

COMMANDS = (doctor, top, inspect)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 130 after Ctrl-C, without a traceback."""
    try:
        parsed = parser().parse_args(arguments)
        status: int = parsed.run(parsed)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the program that reads the output has seen enough
        # Otherwise Python would complain when it flushes standard output at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except AreplayError as error:
        print(f"areplay {parsed.command}: {error}", file=sys.stderr)
        return 1
    return status


def parser() -> argparse.ArgumentParser:
    """Make the parser of all commands and their options."""
    whole = argparse.ArgumentParser(
        "areplay", description="Experience replay for one big machine: the tools."
    )
    whole.add_argument("--version", action="version", version=f"areplay {areplay.__version__}")
    subparsers = whole.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_to(subparsers)
    return whole
