"""How a side is driven: one JSON line a question, one an answer, and one learner's loop that all
sides share.

Rule: the clock is read here and nowhere else, at the same places for every side: when the learner
is done with its step, and when it has read one element of each observation of its next batch, so
that what is computed late is computed by then. In between it gives the rows of the batch before new
priorities, if the work says so.

    {"do": "prepare", "work": {...}, "producers": 1}           -> {"versions": {...}, "choices":
                                                               [...]}
    {"do": "measure", "mode": "flat", "seconds": 0.5, ...}     -> {"batches": 812, "rows_per_s":
                                                               6400.0, ...}
    {"do": "close"}                                            -> {}

An answer is {"answer": ...}, {"unable": "why the library cannot do that"} or {"failed":
"traceback"}. This module runs in every environment: it imports numpy and nothing of areplay.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any, TextIO

import numpy as np

from benchmarks.peers import waits
from benchmarks.peers.processes import cpu_s, family
from benchmarks.peers.switch import END, FLAT_OUT, PACED, STOPPED, Switch, produce
from benchmarks.peers.works import Work

spawn = multiprocessing.get_context("spawn")

# flat out; behind steps; producers flat out and nobody samples
FLAT, STEPS, FLOOD = "flat", "steps", "flood"
LEARNER_S = 0.005
START_S = 30.0


class Unable(Exception):
    """The library cannot do this work; the message says why."""


class Meter:
    """The learner's clock: how long it waited for each batch."""

    def __init__(self, seconds: float, learner_s: float) -> None:
        self._learner_s, self._asked_s = learner_s, 0.0
        self.waits_s: list[float] = []
        self.start_s = time.perf_counter()
        self._end_s = self.start_s + seconds

    @property
    def is_flat_out(self) -> bool:
        """Whether the learner does nothing with a batch."""
        return not self._learner_s

    def ask(self) -> None:
        """The learner is done with its step, and wants a batch."""
        self._asked_s = time.perf_counter()

    def got(self, obs: np.ndarray[Any, Any]) -> None:
        """It has one: one element of each observation is read, then the clock."""
        obs[(slice(None),) + (0,) * (obs.ndim - 1)].copy()
        self.waits_s.append(time.perf_counter() - self._asked_s)

    def step(self) -> bool:
        """The learner's step with the batch, which blocks as training on a GPU does; whether time
        is up."""
        if self._learner_s:
            time.sleep(self._learner_s)
        return time.perf_counter() >= self._end_s


class Side:
    """A library at work. An adapter derives from it."""

    packages: tuple[str, ...] = ()  # distributions whose versions matter
    # sentences for the table: what was chosen in the library's favour
    choices: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.switch = Switch()
        self._producers: list[Any] = []

    def prepare(self, work: Work, producers: int) -> None:
        """Fill a buffer to its capacity, and start so many producers that wait for the switch.

        Called again for another number of producers; what is left from before may be used again.

        Raises:
            Unable: the library has no way to do this work.
        """
        raise NotImplementedError

    def take(self) -> np.ndarray[Any, Any]:
        """The observations of the next batch, all of which is in the learner's hand."""
        raise NotImplementedError

    def update(self) -> None:
        """Give the rows of the batch that was taken last new priorities."""
        raise NotImplementedError

    def learn(self, work: Work, meter: Meter) -> None:
        """The learner's loop."""
        meter.ask()
        while True:
            meter.got(self.take())
            if meter.step():
                return
            meter.ask()
            if work.is_prioritized:
                self.update()

    def idle(self, seconds: float) -> None:
        """Let producers work while nobody samples."""
        time.sleep(seconds)

    def rows_in(self) -> int:
        """Rows that have been handed in by producers so far."""
        return self.switch.rows

    def close(self) -> None:
        """End producers, and whatever else there is."""
        self.end_producers()

    def spawn_producers(self, count: int, target: Callable[..., None], *args: Any) -> None:
        """Start processes that call `target(switch, number, *args)`, which comes to `produce`."""
        self._start(
            spawn.Process(target=target, args=(self.switch, number, *args), daemon=True)
            for number in range(count)
        )

    def thread_producers(self, count: int, rows: int, add: Callable[[], object]) -> None:
        """Start threads that hand in chunks of so many rows."""
        self._start(
            threading.Thread(target=produce, args=(self.switch, number, rows, add), daemon=True)
            for number in range(count)
        )

    def end_producers(self) -> None:
        """End those that were started, and wait for them."""
        self.switch.turn(END)
        for producer in self._producers:
            producer.join(START_S)
        self._producers = []

    def _start(self, producers: Iterator[Any]) -> None:
        self.switch = Switch()
        self._producers = []
        for producer in producers:
            producer.start()
            self._producers.append(producer)
        while self.switch.ready < len(self._producers):  # the driver's watchdog ends this
            if not all(producer.is_alive() for producer in self._producers):
                raise RuntimeError("a producer died when it was started")
            time.sleep(0.005)


def measure(
    side: Side, work: Work, producers: int, mode: str, seconds: float, settle_s: float
) -> dict[str, Any]:
    """One turn: what came in, what went out, the learner's waits, and the processor time of it
    all."""
    learner_s = LEARNER_S if mode == STEPS else 0.0
    try:
        if producers:
            pace = work.rows_per_s / work.chunk_rows / producers
            side.switch.turn(FLAT_OUT if mode == FLOOD else PACED, pace)
            _wait_rows(side)
        # looks at every process of the host, so before anything is counted
        workers = family(os.getpid())
        _spend(side, work, mode, Meter(settle_s, learner_s), settle_s)
        # slow beside a busy thread, so outside of what is counted by the clock
        before_cpu_s = cpu_s(workers)
        before_rows, meter = side.rows_in(), Meter(seconds, learner_s)
        _spend(side, work, mode, meter, seconds)
        spent_s, rows = time.perf_counter() - meter.start_s, side.rows_in() - before_rows
        used_s = cpu_s(workers) - before_cpu_s
    finally:
        side.switch.turn(STOPPED)
    batches = len(meter.waits_s)
    moved = rows + batches * work.batch_size
    answer: dict[str, Any] = {
        "seconds": spent_s,
        "batches": batches,
        "batches_per_s": batches / spent_s,
        "rows_per_s": rows / spent_s,
        "cpu_s_per_million_rows": 1e6 * used_s / moved if moved else 0.0,
    }
    if batches:
        waits_us = 1e6 * np.array(meter.waits_s)
        answer |= {
            f"p{percent}_us": float(np.percentile(waits_us, percent)) for percent in (50, 99)
        }
        answer |= {
            "max_us": float(waits_us.max()),
            "mean_us": float(waits_us.mean()),
            "waits": waits.counts(waits_us),
        }
    return answer


def _spend(side: Side, work: Work, mode: str, meter: Meter, seconds: float) -> None:
    if mode == FLOOD:
        side.idle(seconds)
    else:
        side.learn(work, meter)


def _wait_rows(side: Side) -> None:
    before, deadline_s = side.rows_in(), time.monotonic() + START_S
    while side.rows_in() == before:
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"no row came in within {START_S:.0f} s")
        side.idle(0.005)


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Which versions are installed here."""
    return {name: metadata.version(name) for name in packages}


def serve(side: Side) -> None:
    """Answer questions until there are no more. What a library prints to stdout goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    work, producers = None, 0
    with contextlib.suppress(BrokenPipeError):
        for line in sys.stdin:
            question = json.loads(line)
            try:
                if question["do"] == "prepare":
                    work, producers = Work.from_record(question["work"]), question["producers"]
                    side.prepare(work, producers)
                    answer: dict[str, Any] = {
                        "versions": versions(side.packages),
                        "choices": side.choices,
                    }
                elif question["do"] == "measure":
                    assert work is not None, "prepare comes first"
                    asked = {name: question[name] for name in ("mode", "seconds", "settle_s")}
                    answer = measure(side, work, producers, **asked)
                else:
                    side.close()
                    answer = {}
            except Unable as reason:
                _say(answers, {"unable": str(reason)})
            except Exception:
                _say(answers, {"failed": traceback.format_exc()})
            else:
                _say(answers, {"answer": answer})


def _say(answers: TextIO, line: dict[str, Any]) -> None:
    answers.write(json.dumps(line) + "\n")
    answers.flush()
