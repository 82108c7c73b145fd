"""Measurements as files: JSON with all that is known, a table in Markdown, a plot of each.

out/bench.json              machine, options, figures, points of the plots
out/bench.md                the figures, with the plots
out/queue-28240-bytes.png   a plot for each measurement and each kind of rows
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

from benchmarks.harness.machine import machine
from benchmarks.harness.options import Options
from benchmarks.harness.panels import Measurement
from benchmarks.row import plots
from benchmarks.workloads import Workload

JSON, TABLE = "bench.json", "bench.md"


class Report:
    """A folder that fills up as measurements come in: what is there is whole, wherever the run
    ends.

    Attributes:
        path: the folder.
        failures: what could not be measured, and why.
    """

    def __init__(self, path: Path, workloads: Sequence[Workload], options: Options) -> None:
        self.path, self.failures = path, dict[str, str]()
        self._workloads = {workload.name: workload for workload in workloads}
        self._options, self._measurements = options, list[Measurement]()
        self._measured_on = date.today().isoformat()
        path.mkdir(parents=True, exist_ok=True)

    def add(self, measurement: Measurement) -> None:
        """Take in what was measured, and draw it."""
        self._measurements.append(measurement)
        if plots.can_draw():
            plots.draw(measurement, self.path / self.picture(measurement))
        self.write()

    def fail(self, what: str, why: str) -> None:
        """Note that something could not be measured."""
        self.failures[what] = why
        self.write()

    def picture(self, measurement: Measurement) -> str:
        """The name of its plot."""
        return f"{measurement.name}-{self._workloads[measurement.rows].row_bytes}-bytes.png"

    def write(self) -> None:
        """Write the JSON and the table."""
        record = {
            "measured_on": self._measured_on,
            "machine": machine(),
            "options": self._options.record(),
            "rows": {name: _described(workload) for name, workload in self._workloads.items()},
            "measurements": [measurement.record() for measurement in self._measurements],
            "failures": self.failures,
        }
        (self.path / JSON).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
        (self.path / TABLE).write_text("\n".join(self.lines()) + "\n")

    def lines(self) -> list[str]:
        """The table, in Markdown."""
        asked = self._options
        lines = ["# areplay on this machine", "", f"- measured on: {self._measured_on}"]
        lines += [
            f"- asked for: {asked.seconds:g} s a figure, {asked.capacity:,} rows a replay, "
            f"{asked.batch_size:,} a batch, {asked.budget_s:g} s for more and more actors or rows"
        ]
        lines += [f"- {name}: {value}" for name, value in machine().items()]
        for measurement in self._measurements:
            lines += [
                "",
                f"## {measurement.name}: {measurement.title}",
                "",
                "| figure | | |",
                "|---|---:|---|",
            ]
            lines += [
                f"| {figure.name} | {figure} | {figure.note} |" for figure in measurement.figures
            ]
            lines += ["", *(f"- {note}" for note in measurement.notes)] if measurement.notes else []
            if (self.path / self.picture(measurement)).exists():
                lines += ["", f"![{measurement.name}]({self.picture(measurement)})"]
        if self.failures:
            lines += ["", "## Not measured", ""]
            lines += [f"- {what}: {why}" for what, why in self.failures.items()]
        return lines


def _described(workload: Workload) -> Mapping[str, object]:
    fields = {name: [list(shape), dtype] for name, (shape, dtype) in workload.fields.items()}
    return {"row_bytes": workload.row_bytes, "fields": fields}
