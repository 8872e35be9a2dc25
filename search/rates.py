"""How fast a core of a TPU v4 trains each variant: measured, as the TPU's compiler tells it, or a known estimate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import harmonic_mean
from typing import Any, Final, Literal

from clusters.tpu import PEAK_FLOPS_PER_S
from models.costs import costs
from search.ledger import Record
from search.programs import Program, images_per_core, load_programs, takes_parts
from search.results import MeasuredRates
from search.state import StudyState
from search.study import Study
from search.units import KNOWN_FLOPS_PER_CORE_SECOND

TPU_V4: Final = "TPU-v4"
Source = Literal["measured", "others", "given", "compiled", "known"]


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast one core trains a variant.

    Attributes:
        variant: the model.
        source: where the figure is from: "measured" by an earlier search of this variant, "given" as the study's
            compute.flops_per_core_second, "compiled" (the TPU compiler's estimate), measured of the "others" together,
            or "known" (an estimate for every model alike). Only the first is no estimate.
        parameters: trainable numbers of the model.
        flops_per_image: training FLOPs of one image.
        flops_per_core_second: what is expected.
        at_most: the same by the roofline, of what is compiled; None where that is not known.
        images_per_core: of the step that was compiled.
        memory_of_core: bytes of HBM that a step takes, where one of just these images and classes was compiled.
    """

    variant: str
    source: Source
    parameters: int
    flops_per_image: float
    flops_per_core_second: float
    at_most: float | None = None
    images_per_core: float | None = None
    memory_of_core: int | None = None

    @property
    def estimated(self) -> bool:
        """Whether this is anything but a measurement of this very variant."""
        return self.source != "measured"

    @property
    def images_per_s(self) -> float:
        """Images per second of one core, as expected."""
        return self.flops_per_core_second / self.flops_per_image

    @property
    def images_per_s_at_most(self) -> float | None:
        """The same by the roofline."""
        return None if self.at_most is None else self.at_most / self.flops_per_image

    @property
    def utilisation(self) -> float:
        """Share of a core's peak that training FLOPs are."""
        return self.flops_per_core_second / PEAK_FLOPS_PER_S

    def core_hours(self, flops: float) -> float:
        """Core-hours of so many training FLOPs, as expected."""
        return flops / self.flops_per_core_second / 3600

    def core_hours_at_least(self, flops: float) -> float | None:
        """The same by the roofline."""
        return None if self.at_most is None else flops / self.at_most / 3600


def has_rates_of(study: Study, records: Sequence[Record], device: str) -> bool:
    """Whether the FLOPs per second of a run's trials are those of the study on a device: the same models, images,
    batches, precision and device.
    """
    now, before = study.identity(), StudyState.of(records).opened["identity"]
    keys = {key for key in now if key.startswith("model.")} - {"model.variants"}
    keys |= {"data.image_size", "training.batch_size", "training.precision"}
    devices = {record.get("device") for record in records if record.event == "session_started"}
    return devices == {device} and all(before.get(key) == now[key] for key in keys)


def rates_on_tpu(
    study: Study, programs: Mapping[str, Program], classes: int, measured: MeasuredRates | None
) -> dict[str, Rate]:
    """The rate of each of the study's variants on TPU v4, by the best source that there is for it.

    A measurement of the variant goes first, then what the study gives for its TPU, then what was compiled, then what
    was measured of other variants, then the known estimate.
    """
    compiled = compiled_rates(study, programs, classes)
    given = study.compute.flops_per_core_second if study.compute.device == "tpu" else None
    rates: dict[str, Rate] = {}
    for variant in study.model.variants:
        source: Source
        if measured is not None and variant in measured.by_variant:
            source, rate = "measured", measured.by_variant[variant]
        elif given is not None:
            source, rate = "given", given
        elif variant in compiled:
            rates[variant] = compiled[variant]
            continue
        elif measured is not None:
            source, rate = "others", measured.overall
        else:
            source, rate = "known", KNOWN_FLOPS_PER_CORE_SECOND[TPU_V4]
        size = costs(study.model_size(variant, classes))
        memory = compiled[variant].memory_of_core if variant in compiled else None
        flops = float(size.training_flops)
        rates[variant] = Rate(variant, source, size.parameters, flops, rate, memory_of_core=memory)
    return rates


def compiled_rates(study: Study, programs: Mapping[str, Program], classes: int) -> dict[str, Rate]:
    """What follows from programs for their variants' speed; of data with so many classes."""
    rates: dict[str, Rate] = {}
    for variant, program in programs.items():
        size = costs(study.model_size(variant, classes))
        # What was compiled may have another number of classes; FLOPs per second are of that very program.
        of_classes = program.settings["model"]["classes"]
        flops = costs(study.model_size(variant, of_classes)).training_flops
        expected, most = (program.images_per_s(seconds) for seconds in (program.expected_s, program.roofline_s))
        if expected is None or most is None:
            continue
        per_core = program.images / program.cores
        alike = of_classes == classes and program.part_of_batch == takes_parts(study)
        of_study = alike and math.isclose(per_core, images_per_core(study))
        rates[variant] = Rate(
            variant,
            "compiled",
            size.parameters,
            float(size.training_flops),
            flops * expected,
            flops * most,
            per_core,
            program.costs.memory["total"] if program.costs is not None and of_study else None,
        )
    return rates


def core_hour_rates(study: Study, classes: int, opened: Mapping[str, Any]) -> dict[str, float]:
    """FLOPs per core-second by which budgets in core-hours of a device become FLOPs, by device.

    Of TPU v4 it is the mean of the study's compiled variants (the harmonic one: a budget buys every variant the same
    FLOPs, and the mean of their core-hours is then the budget's), else the known estimate. A run goes on by the rates
    that it was `opened` with, whatever was compiled since.
    """
    rates = dict(KNOWN_FLOPS_PER_CORE_SECOND)
    if opened:
        return rates | dict(opened.get("core_hour_rates", {}))
    if any(quantity.device == TPU_V4 for quantity in study.budgets):
        compiled = compiled_rates(study, load_programs(study), classes)
        if compiled:
            rates[TPU_V4] = harmonic_mean([rate.flops_per_core_second for rate in compiled.values()])
    return rates


def published_rate(study: Study, variant: str, classes: int, rates: Mapping[str, Rate]) -> Rate:
    """The rate of any variant of the family: one of `rates`, or else the known estimate."""
    if variant in rates:
        return rates[variant]
    size = costs(study.model_size(variant, classes))
    known = KNOWN_FLOPS_PER_CORE_SECOND[TPU_V4]
    return Rate(variant, "known", size.parameters, float(size.training_flops), known)
