"""`areplay top [REPLAY]`: look at a running replay of the same user. It is asked, and does not feel
it.

Rates are differences between two looks, over the replay's own clock.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any

from areplay._status.client import ReplayAddress, fetch_report, running_replays
from areplay.cli import terminal as terminal
from areplay.cli.description import checked
from areplay.cli.picture import Answer, command_of, picture
from areplay.cli.terminal import span
from areplay.errors import Closed, StatusUnavailable

_NEW_STREAM: Answer = {"batches_delivered": 0, "learner_waited_s": 0.0, "samplers": []}
_NONE, _SEVERAL = 1, 2  # exit statuses


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
    if not arguments.json:
        console = terminal.console("areplay top")  # or say at once that it is missing
    running = running_replays()
    found = [
        address for address in running if arguments.replay in (None, str(address.pid), str(address))
    ]
    if not found:
        which = (
            f"no replay {arguments.replay} of this user"
            if arguments.replay
            else "no replay of this user"
        )
        print(f"areplay top: {which} is running here", file=sys.stderr)
        _list(running)
        return _NONE
    if len(found) > 1:
        print(
            "areplay top: several replays are running, say which: areplay top PID", file=sys.stderr
        )
        _list(found)
        return _SEVERAL
    looks = _Looks(found[0], arguments.interval, 1 if arguments.once else None)
    try:
        if arguments.json:
            for answer, before in looks:
                terminal.write_json(
                    {**answer, "rates": rates(answer, before)}, indent=1 if arguments.once else None
                )
        elif arguments.once or not console.is_terminal:
            for answer, before in looks:
                console.print(picture(answer, rates(answer, before)))
        else:
            _show_live(console, looks)
    except Closed:
        too_early = "" if looks.taken else ", before there was anything to show"
        print(
            f"areplay top: replay {found[0]} is closed, or its process has ended{too_early}",
            file=sys.stderr,
        )
    return 0 if looks.taken else _NONE


class _Looks:
    """What the replay says now, and what it said an interval before; again and again.

    Attributes:
        taken: such pairs so far.
    """

    def __init__(self, address: ReplayAddress, interval_s: float, count: int | None) -> None:
        self._post, self._interval_s, self._count = address, interval_s, count
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
        return checked(fetch_report(self._post), f"replay {self._post}")


def _show_live(console: Any, looks: _Looks) -> None:
    from rich.live import Live

    with Live(
        "one moment", console=console, auto_refresh=False, screen=True, vertical_overflow="crop"
    ) as live:
        for answer, before in looks:
            live.update(picture(answer, rates(answer, before)), refresh=True)


def _list(found: list[ReplayAddress]) -> None:
    """Which replays there are, to choose from."""
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


def rates(answer: Answer, before: Answer) -> dict[str, Any]:
    """Rows in and batches out a second between two looks: of the whole, of each actor and of each
    stream."""
    now, then = answer["statistics"], before["statistics"]
    seconds: float = max(answer["uptime_s"] - before["uptime_s"], 1e-9)
    actors = {(actor["group"], actor["index"]): actor["rows"] for actor in then["actors"]}
    streams = {stream["number"]: stream for stream in then["batches"]}

    def rate(count: float, earlier: float) -> float:
        return max(0.0, count - earlier) / seconds

    def of_actor(actor: Answer) -> dict[str, Any]:
        place = actor["group"], actor["index"]
        return {
            "group": place[0],
            "index": place[1],
            "rows_per_s": rate(actor["rows"], actors.get(place, 0)),
        }

    def of_stream(stream: Answer) -> dict[str, Any]:
        earlier = streams.get(stream["number"], _NEW_STREAM)
        filled = {sampler["index"]: sampler["batches_filled"] for sampler in earlier["samplers"]}
        batches_per_s = rate(stream["batches_delivered"], earlier["batches_delivered"])
        return {
            "number": stream["number"],
            "batches_per_s": batches_per_s,
            "items_per_s": batches_per_s * stream["batch_size"],
            "waiting_share": min(
                1.0, rate(stream["learner_waited_s"], earlier["learner_waited_s"])
            ),
            "samplers": [
                {
                    "index": sampler["index"],
                    "batches_per_s": rate(
                        sampler["batches_filled"], filled.get(sampler["index"], 0)
                    ),
                }
                for sampler in stream["samplers"]
            ],
        }

    return {
        "seconds": seconds,
        "rows_per_s": rate(now["rows_inserted"], then["rows_inserted"]),
        "actors": [of_actor(actor) for actor in now["actors"]],
        "batches": [of_stream(stream) for stream in now["batches"]],
    }
