"""The command `areplay`: what it understands, and which of its parts answers.

Each part is a module of this folder with a function `add_to(subparsers)`, which adds a parser and
sets its default `run` to a function of the parsed arguments that returns the exit status. Only here
is anything printed.
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

COMMANDS = (
    doctor,
    top,
    inspect,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status. Ctrl-C ends it quietly, with 130."""
    try:
        parsed = parser().parse_args(arguments)
        status: int = parsed.run(parsed)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever read the output has seen enough
        # or Python would complain at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except AreplayError as error:
        print(f"areplay {parsed.command}: {error}", file=sys.stderr)
        return 1
    return status


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    whole = argparse.ArgumentParser(
        "areplay", description="Experience replay for one big machine: the tools."
    )
    whole.add_argument("--version", action="version", version=f"areplay {areplay.__version__}")
    subparsers = whole.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_to(subparsers)
    return whole
