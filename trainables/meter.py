"""Compute, metered: where a trial's wall time went, its core-hours, FLOPs and images, over all of its attempts.

The meter's clock always runs in exactly one bucket, so the buckets add up to the wall time. It lives in the
checkpoint and goes on after a restart. On an asynchronous device the time of a step is spent where the host waits for
it: in `productive`, before the loop evaluates, saves or reports; and in `input_wait`, where the host waits for the next
batch while the device still works. The latter is moved to `productive` as soon as it is known (`InputOverlap`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, Final, Literal, get_args

Bucket = Literal[
    "productive", "input_wait", "evaluation", "checkpoint", "start_up", "compilation", "repeated", "restart"
]
BUCKETS: Final[tuple[Bucket, ...]] = get_args(Bucket)


class Meter:
    """Counts from its making on, first into `start_up`.

    `cores`: the cores (CPU threads, GPUs, TPU cores) of all workers together. `peak_flops_per_s`: what all of them
    together could do at the trial's precision, None if unknown. `flops_per_image`: training FLOPs (3 x 2 x MACs).
    """

    def __init__(
        self,
        *,
        cores: int,
        peak_flops_per_s: float | None = None,
        flops_per_image: float = 0.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.cores = cores
        self.peak_flops_per_s = peak_flops_per_s
        self.flops_per_image = flops_per_image
        self.images = 0
        self.flops = 0.0
        self.steps_reached = 0  # by an attempt that died: steps below it have been counted already
        self.seconds: dict[Bucket, float] = dict.fromkeys(BUCKETS, 0.0)
        self.core_seconds: dict[Bucket, float] = dict.fromkeys(BUCKETS, 0.0)
        self._clock = clock
        self._bucket: Bucket = "start_up"
        self._since = clock()

    def add(self, bucket: Bucket, seconds: float) -> None:
        """Count `seconds` of wall time that this clock did not see."""
        self.seconds[bucket] += seconds
        self.core_seconds[bucket] += seconds * self.cores

    def enter(self, bucket: Bucket) -> Bucket:
        """Let the clock run in `bucket` from now on; returns the bucket it ran in."""
        now, before = self._clock(), self._bucket
        self.add(before, now - self._since)
        self._since, self._bucket = now, bucket
        return before

    @contextmanager
    def time(self, bucket: Bucket) -> Iterator[None]:
        """Count the block's time in `bucket`, and no longer in the bucket around it."""
        before = self.enter(bucket)
        try:
            yield
        finally:
            self.enter(before)

    def move(self, seconds: float, to: Bucket, source: Bucket | None = None) -> None:
        """Count `seconds` of `source` (None: the running bucket) in `to` instead: what is known only afterwards."""
        if seconds:
            self.add(source or self._bucket, -seconds)
            self.add(to, seconds)

    def bucket_of(self, step: int) -> Bucket:
        """Where step `step` (from 0) counts: `repeated` if an attempt that died had done it."""
        return "repeated" if step < self.steps_reached else "productive"

    def count_step(self, step: int, images: int) -> None:
        """Count one step's images and FLOPs; a repeated step's were counted when it was first done."""
        if step >= self.steps_reached:
            self.images += images
            self.flops += images * self.flops_per_image

    def resume(
        self,
        step: int,
        saved: dict[str, Any] | None,
        *,
        saved_at: float | None = None,
        previous: dict[str, Any] | None = None,
        now: float,
    ) -> None:
        """Go on from a checkpoint at `step` with meter `saved` (None: from the start), adding what this clock has seen.

        `previous` speaks of an attempt that died: {"step": reached, "meter": its last, "time": Unix seconds of its
        last report}. If it got further than the checkpoint, its meter is the one that goes on, and the steps up to
        `reached` count as repeated. The time from the last sign of it (a report, or the checkpoint's `saved_at`) to
        `now`, the Unix time at which this meter was made, is dead time. An attempt of an earlier session has no "time":
        what passes between sessions is not the trial's.
        """
        base = saved
        if previous is not None:
            if previous["step"] > step and previous.get("meter"):
                base, self.steps_reached = previous["meter"], int(previous["step"])
            if (reported_at := previous.get("time")) is not None:
                self.add("restart", max(0.0, now - max(reported_at, saved_at or 0.0)))
        if base is not None:
            for bucket in BUCKETS:
                self.seconds[bucket] += base["seconds"][bucket]
                self.core_seconds[bucket] += base["core_seconds"][bucket]
            self.images += base["images"]
            self.flops += base["flops"]
            self.steps_reached = max(self.steps_reached, base["steps_reached"])

    def to_dict(self) -> dict[str, Any]:
        """The meter so far, as JSON-serialisable values; `from_dict` and `resume` take it."""
        self.enter(self._bucket)
        return {
            "cores": self.cores,
            "peak_flops_per_s": self.peak_flops_per_s,
            "flops_per_image": self.flops_per_image,
            "images": self.images,
            "flops": self.flops,
            "steps_reached": self.steps_reached,
            "seconds": dict(self.seconds),
            "core_seconds": dict(self.core_seconds),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any], clock: Callable[[], float] = monotonic) -> Meter:
        """The inverse of `to_dict`; its clock starts now."""
        meter = cls(
            cores=values["cores"],
            peak_flops_per_s=values["peak_flops_per_s"],
            flops_per_image=values["flops_per_image"],
            clock=clock,
        )
        meter.resume(0, values, now=0.0)
        return meter

    def summary(self) -> dict[str, Any]:
        """What the tables and the tracking show.

        `core_hours`: productive wall time x cores; `core_hours_total`: all of it. `flops`: training FLOPs of
        productive steps. `images_per_second`: productive images over productive and input-wait time. `mfu`: `flops`
        over what the cores could have done in their productive time (None if their peak is unknown). `goodput`:
        productive over all wall time.
        """
        self.enter(self._bucket)
        productive, core_s = self.seconds["productive"], self.core_seconds["productive"]
        total, training = sum(self.seconds.values()), productive + self.seconds["input_wait"]
        peak = self.peak_flops_per_s / self.cores * core_s if self.peak_flops_per_s else 0.0
        return {
            "core_hours": core_s / 3600,
            "core_hours_total": sum(self.core_seconds.values()) / 3600,
            "flops": self.flops,
            "images": self.images,
            "cores": self.cores,
            "images_per_second": self.images / training if training else 0.0,
            "mfu": self.flops / peak if peak else None,
            "goodput": productive / total if total else 0.0,
            **{f"seconds_{bucket}": self.seconds[bucket] for bucket in BUCKETS},
        }
