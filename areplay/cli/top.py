"""`areplay top [REPLAY]`: look at a running replay of the same user.

The replay's status server answers; its actors, samplers and learner do not notice.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from areplay._status.client import ReplayAddress, fetch_report, running_replays
from areplay.cli import terminal as terminal
from areplay.cli.description import checked
from areplay.cli.picture import Answer, command_of, picture
from areplay.cli.rates import rates
from areplay.cli.terminal import span
from areplay.errors import Closed, StatusUnavailable

if TYPE_CHECKING:
    from rich.console import Console

# Exit statuses.
_NO_REPLAY = 1
_SEVERAL_REPLAYS = 2


def add_to(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command."""
    parser = subparsers.add_parser(
        "top",
        help="look at a running replay",
        description="Look at a running replay of the same user: how full it is, how fast rows come "
        "in and batches go out, who waits for whom, and how its actors and samplers are. Ends with "
        "the replay, or with Ctrl-C. Exit status 1 if there is none, or it has closed before there "
        "was a picture, 2 if there are several and it was not said which.",
    )
    parser.add_argument(
        "replay",
        metavar="PID",
        nargs="?",
        help="of its process, or PID.NUMBER if that one has several; needed if several run",
    )
    parser.add_argument(
        "--interval", type=_seconds, default=1.0, metavar="SECONDS", help="between two looks (1)"
    )
    parser.add_argument(
        "--once", action="store_true", help="show one picture, of two looks, and end"
    )
    parser.add_argument(
        "--json", action="store_true", help="JSON documents, one a line, instead of pictures"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Find the replay, and show it again and again."""
    # Made first: without rich this raises before any replay is asked.
    console = None if arguments.json else terminal.console("areplay top")
    running = running_replays()
    found = [address for address in running if _is_meant(address, arguments.replay)]
    if not found:
        which = f"no replay {arguments.replay or ''}".rstrip()
        _complain(f"{which} of this user is running here")
        _list(running)
        return _NO_REPLAY
    if len(found) > 1:
        _complain("several replays are running, say which: areplay top PID")
        _list(found)
        return _SEVERAL_REPLAYS
    looks = _Looks(found[0], arguments.interval, 1 if arguments.once else None)
    try:
        _show(looks, console, arguments.once)
    except Closed:
        too_early = "" if looks.taken else ", before there was anything to show"
        _complain(f"replay {found[0]} is closed, or its process has ended{too_early}")
    return 0 if looks.taken else _NO_REPLAY


def _is_meant(address: ReplayAddress, replay: str | None) -> bool:
    return replay in (None, str(address.pid), str(address))


def _complain(text: str) -> None:
    print(f"areplay top: {text}", file=sys.stderr)


def _show(looks: _Looks, console: Console | None, is_once: bool) -> None:
    """Show each look: as JSON if there is no console, as a picture, or as a live picture."""
    if console is None:
        for now, before in looks:
            document = {**now, "rates": rates(now, before)}
            terminal.write_json(document, indent=1 if is_once else None)
    elif is_once or not console.is_terminal:
        for now, before in looks:
            console.print(picture(now, rates(now, before)))
    else:
        _show_live(console, looks)


class _Looks:
    """Pairs of answers: the newest one, and the one an interval before.

    Attributes:
        taken: how many pairs were yielded.
    """

    def __init__(self, address: ReplayAddress, interval_s: float, count: int | None) -> None:
        self._address = address
        self._interval_s = interval_s
        self._count = count
        self.taken = 0

    def __iter__(self) -> Iterator[tuple[Answer, Answer]]:
        before = self._look()
        while self._count is None or self.taken < self._count:
            time.sleep(self._interval_s)
            now = self._look()
            self.taken += 1
            yield now, before
            before = now

    def _look(self) -> Answer:
        return checked(fetch_report(self._address), f"replay {self._address}")


def _show_live(console: Console, looks: _Looks) -> None:
    from rich.live import Live

    with Live(
        "one moment", console=console, auto_refresh=False, screen=True, vertical_overflow="crop"
    ) as live:
        for now, before in looks:
            live.update(picture(now, rates(now, before)), refresh=True)


def _list(found: list[ReplayAddress]) -> None:
    """Print the replays to choose from."""
    for address in found:
        try:
            answer = checked(fetch_report(address, timeout_s=1.0), f"replay {address}")
        except Closed:
            continue
        except StatusUnavailable as error:
            what = error.reason
        else:
            statistics = answer["statistics"]
            rows = f"{statistics['rows']:,} of {statistics['capacity_rows']:,} rows"
            what = f"up {span(answer['uptime_s'])}, {rows}: {command_of(answer)}"
        print(f"  {address!s:>10}  {what}", file=sys.stderr)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.01 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(
            f"expected a number of seconds from 0.01 to 86400, got {text!r}"
        )
    return seconds
