"""The section of a study file that says what a study may use of a machine or a cluster."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from clusters.tpu import CHIPS_PER_HOST, GENERATION, Topology
from search.sections import Section
from trainables.config import LOOP_FROM


class Compute(Section):
    """What the study may use of the machine or cluster."""

    device: Literal["auto", "cpu", "cuda", "tpu", "xla-cpu"] = Field(
        default="auto",
        description="auto: a TPU if there is one, else a GPU, else the CPU. xla-cpu: the TPU's path on the CPU, to try "
        "it; each core is a device.",
    )
    accelerator: str | None = Field(
        default=None,
        description="device tpu: what each slice is, tpu-v4-8 to tpu-v4-4096 as Google names them: the number counts "
        "cores, two a chip, four chips a host; null: tpu-v4-8, one host.",
    )
    topology: str | None = Field(
        default=None,
        description="The chips of compute.accelerator along three dimensions, such as 4x4x16; null: the most compact "
        "there is, which is what Google gives by default.",
    )
    slices: int = Field(default=1, ge=1, le=10_000, description="Trials that run at the same time, each on a slice.")
    cores_per_slice: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="CPU cores of each slice, shared out among its workers as threads (on xla-cpu, as devices); "
        "null: machine's cores / slices.",
    )
    workers_per_slice: int = Field(
        default=1,
        ge=1,
        le=10_000,
        description="Processes that train one trial together (data parallel); on GPUs one for each GPU, on TPUs one "
        "for each host, which compute.accelerator says.",
    )
    flops_per_core_second: float | None = Field(
        default=None,
        ge=1,
        le=1e21,
        description="Training FLOPs one core (a CPU core, a GPU, one of a TPU chip's two) does in a second. Converts "
        "budgets in core-hours and estimates durations; a finished search prints the measured value.",
    )
    loop_from: int | None = Field(
        default=LOOP_FROM,
        ge=2,
        description="TPU: from how many like blocks on a loop is compiled (sooner, but a fifth slower); null: never.",
    )
    recycle_after: int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        description="Start a slice's workers afresh after so many trials; null: only after a crash.",
    )
    max_errors: int = Field(
        default=3,
        ge=0,
        le=1000,
        description="How often a trial that failed by its own error is tried again; lost machines do not count.",
    )

    @property
    def tpu_slice(self) -> Topology:
        """What a slice is on TPUs: the accelerator's chips, or one host's."""
        topology = slice_of(self.accelerator, self.topology)
        return Topology((2, 2, 1)) if topology is None else topology

    @model_validator(mode="before")
    @classmethod
    def _a_worker_for_each_host(cls, values: Any) -> Any:
        """The accelerator says how many workers a slice has; what is given besides must agree."""
        if not isinstance(values, dict) or "workers_per_slice" in values:
            return values
        accelerator, topology = values.get("accelerator"), values.get("topology")
        if not isinstance(accelerator, str) or not isinstance(topology, str | None):
            return values
        try:
            found = slice_of(accelerator, topology)
        except ValueError:  # told by the check of the whole section
            return values
        return values if found is None else {**values, "workers_per_slice": found.hosts}

    @model_validator(mode="after")
    def _a_slice_that_exists(self) -> Self:
        given = "accelerator" if self.accelerator is not None else "topology"
        if (self.accelerator or self.topology) is not None and self.device != "tpu":
            raise ValueError(
                f"{given}: {getattr(self, given)!r} given with device {self.device}; allowed: with device tpu; "
                f"set device: tpu, or remove it"
            )
        if self.device == "tpu" and self.accelerator is None and self.workers_per_slice > 1:
            raise ValueError(needs_accelerator(self.workers_per_slice))
        found = slice_of(self.accelerator, self.topology)
        if found is not None and self.workers_per_slice != found.hosts:
            raise ValueError(
                f"workers_per_slice: {self.workers_per_slice} given with accelerator {self.accelerator}, which has "
                f"{found.hosts} host{'s' if found.hosts > 1 else ''} ({found.chips} chips, {CHIPS_PER_HOST} a host); "
                f"use {found.hosts}, or leave it out"
            )
        return self


def needs_accelerator(workers: int) -> str:
    """What is wrong with several workers for a slice of TPUs where no accelerator is named."""
    made = Topology.of_hosts(workers)
    mend = (
        f"set device: tpu and accelerator: tpu-{made.accelerator}, which has {workers} hosts"
        if made is not None
        else f"no slice has {workers} hosts: leave it out, and set device: tpu and accelerator, such as tpu-v4-16"
    )
    return f"workers_per_slice: {workers} given; allowed on tpu: the hosts of compute.accelerator; {mend}"


def slice_of(accelerator: str | None, topology: str | None) -> Topology | None:
    """The slice that a study names; None if it names none.

    Raises:
        ValueError: one that does not exist, or a topology of other chips than the accelerator's; one line.
    """
    if accelerator is None:
        if topology is not None:
            raise ValueError(
                f"topology: {topology!r} given without accelerator; allowed: with the accelerator that has it; "
                f"{_named(topology)}"
            )
        return None
    try:
        found = Topology.of_accelerator(accelerator)
    except ValueError as error:
        raise ValueError(f"accelerator: {error}") from None
    if topology is None:
        return found
    try:
        shaped = Topology.parse(f"{GENERATION}:{topology.removeprefix(f'{GENERATION}:')}")
    except ValueError as error:
        raise ValueError(f"topology: {str(error).removeprefix('topology ').replace(f'{GENERATION}:', '')}") from None
    if shaped.chips != found.chips:
        raise ValueError(
            f"topology: {topology!r} given with accelerator {accelerator}, which has {found.chips} chips, and "
            f"{shaped.shape} has {shaped.chips}; use {found.shape}, or accelerator tpu-{shaped.accelerator}"
        )
    return shaped


def _named(topology: str) -> str:
    try:
        return f"set accelerator: tpu-{Topology.parse(f'{GENERATION}:{topology}').accelerator}"
    except ValueError:
        return f"set accelerator, such as tpu-{GENERATION}-8"
