"""Tells the sweep, and a tracker, where a running cell stands: its phase, its step, its pace."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from harness.job.measure.device_memory import in_use
from harness.job.measure.phases import Meter
from harness.job.tracker import Tracker
from harness.protocol import Report
from harness.record import Record


class Reporter:
    """Phase and step of a running cell, reported as they begin.

    meter: its open window leaves out what the tracker takes.
    """

    def __init__(self, report: Report, meter: Meter, tracker: Tracker | None):
        self.phase: str = "start"
        self.step: int | None = None
        self._report, self._meter, self._tracker = report, meter, tracker
        self._entered, self._steps_taken = time.monotonic(), 0
        self.answered = AnswersReport(report, self.phase, meter=meter)  # in this phase

    def enter(self, phase: str) -> None:
        self.phase, self.step = phase, None
        self._entered, self._steps_taken = time.monotonic(), 0
        self.answered = AnswersReport(self._report, phase, meter=self._meter)
        self._report({"phase": phase})

    def begin_step(self, step: int) -> None:
        self.step = step

    def end_step(self, event: dict[str, Any]) -> None:
        """Report a training step; `event` as harness.job.training.loop.train reports it."""
        self.step = event["step"]
        self._steps_taken += 1  # by this process
        pace = (time.monotonic() - self._entered) / self._steps_taken
        live = {"memory_bytes": in_use(self._meter.device), "seconds_left": pace * (event["of"] - event["step"])}
        self._report({"phase": self.phase} | event | live)
        values = {f"train/{name}": event[name] for name in ("loss", "lr", "grad_norm", "tokens_per_second")}
        self.track(values | {"train/memory_bytes": live["memory_bytes"]})

    def track(self, values: Mapping[str, float | None]) -> None:
        """Pass `values` to the tracker, if there is one; the phase's seconds and memory leave that out."""
        if self._tracker is not None:
            with self._meter.aside():
                self._tracker.log(values, self.step or 0)

    def end(self, record: Record | None) -> None:
        if self._tracker is not None:
            self._tracker.end(record)


class AnswersReport:
    """Reports how many requests are answered, at most twice a second, and the seconds that the rest takes.

    given: how many of them were answered without taking time. meter: of the device whose memory is reported, if any.
    """

    def __init__(self, report: Report, phase: str, given: Callable[[], int] = lambda: 0, meter: Meter | None = None):
        self._report, self._phase, self._given, self._meter = report, phase, given, meter
        self._entered, self._told = time.monotonic(), 0.0

    def __call__(self, answers: int, of: int) -> None:
        now = time.monotonic()
        if answers < of and now - self._told < 0.5:
            return
        self._told = now
        live: dict[str, int | float | None] = {}
        if (own := answers - self._given()) > 0:
            live["seconds_left"] = (now - self._entered) / own * (of - answers)
        if self._meter is not None:
            live["memory_bytes"] = in_use(self._meter.device)
        self._report({"phase": self._phase, "answered": answers, "of": of} | live)
