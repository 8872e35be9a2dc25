"""What a plan for TPU v4 says besides its budgets: how fast each variant is expected to train, and by which source; and
the core-hours that others have published, side by side with ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from rich.table import Table

from clusters.tpu import CORES_PER_HOST, PEAK_FLOPS_PER_S
from search.formats import MISSING, number
from search.programs import images_per_core
from search.rates import TPU_V4, Rate, published_rate
from search.sections import Published
from search.study import Study
from search.tables import figures_table
from search.units import KNOWN_FLOPS_PER_CORE_SECOND

_KNOWN: Final = KNOWN_FLOPS_PER_CORE_SECOND[TPU_V4]


def estimate(value: float | None, *, measured: bool = False) -> str:
    """A number as a person reads it, marked with "~" unless it was measured."""
    return MISSING if value is None else f"{'' if measured else '~'}{number(value)}"


def rates_table(rates: Mapping[str, Rate], train_examples: int) -> Table:
    """Each variant's rate: images per second of a core, its share of the peak, core-hours of an epoch."""
    speed = ("parameters", "images/s\nexpected", "images/s\nat most", "of\npeak")
    headings = (*speed, "core-hours\nan epoch", "\nat least")
    table = figures_table(f"Speed of a {TPU_V4} core (~ is an estimate)", ("variant", "figures"), headings)
    for rate in rates.values():
        flops, known = rate.flops_per_image * train_examples, not rate.estimated
        table.add_row(
            rate.variant,
            rate.source,
            f"{rate.parameters / 1e6:.2f} M",
            estimate(rate.images_per_s, measured=known),
            estimate(rate.images_per_s_at_most),
            f"{'' if known else '~'}{rate.utilisation:.0%}",
            estimate(rate.core_hours(flops), measured=known),
            estimate(rate.core_hours_at_least(flops)),
        )
    return table


def rates_notes(study: Study, rates: Mapping[str, Rate]) -> Iterator[str]:
    """What the sources of the rates are, a line for each that is there, and how to come by better ones."""
    wanted = images_per_core(study)
    by_source: dict[str, list[Rate]] = {}
    for rate in rates.values():
        by_source.setdefault(rate.source, []).append(rate)
    if "measured" in by_source:
        yield f"Measured ({_names(by_source['measured'])}): by an earlier run of this study on TPUs."
    if "others" in by_source:
        yield f"Others ({_names(by_source['others'])}): as an earlier run of this study measured its other variants."
    if "given" in by_source:
        yield f"Given ({_names(by_source['given'])}): compute.flops_per_core_second of the study."
    if compiled := by_source.get("compiled"):
        sizes = sorted({rate.images_per_core or 0.0 for rate in compiled})
        of_study = "" if sizes == [wanted] else f", and the study has {wanted:g}"
        yield (
            f"Compiled ({_names(compiled)}): the TPU compiler's estimates for a train step of "
            f"{' or '.join(f'{size:g}' for size in sizes)} images a core{of_study}; expected by its count of cycles, "
            "at most (and at least) by the roofline. Nothing ran on a TPU."
        )
    if known := by_source.get("known"):
        asked = f" --batch-size {max(1, round(wanted)) * CORES_PER_HOST}"
        each = "".join(f" --variant {rate.variant}" for rate in known)
        yield (
            f"Known ({_names(known)}): {_KNOWN:.3g} FLOPs per core-second ({_KNOWN / PEAK_FLOPS_PER_S:.0%} of the "
            f"peak) for every model alike, an estimate; for better figures: convscale aot {study.source}{asked}{each}"
        )


def published_table(study: Study, rates: Mapping[str, Rate], train_examples: int, classes: int) -> Table:
    """Core-hours as published, and as we expect them, at least, and by the known rate; and the published ones' share of
    the peak.
    """
    headings = ("epochs", "published", "their share\nof peak", "ours\nexpected", "ours\nat least", "by the\nknown rate")
    table = figures_table(f"{TPU_V4} core-hours, published and ours", ("variant",), headings)
    for each in study.published:
        rate = published_rate(study, each.variant, classes, rates)
        flops = _flops(each, rate, train_examples)
        table.add_row(
            each.variant,
            number(each.epochs, trim=True),
            number(each.core_hours),
            f"{_share(each, flops):.0%}",
            estimate(rate.core_hours(flops)),
            estimate(rate.core_hours_at_least(flops)),
            estimate(flops / _KNOWN / 3600),
        )
    return table


def published_notes(study: Study, rates: Mapping[str, Rate], train_examples: int, classes: int) -> Iterator[str]:
    """The difference in words, and where the published figures are from."""
    found = [
        (each, rate, _flops(each, rate, train_examples))
        for each in study.published
        for rate in [published_rate(study, each.variant, classes, rates)]
    ]
    theirs = _joined([f"{_share(each, flops):.0%} for {each.variant}" for each, _, flops in found])
    ours = _joined([f"{rate.utilisation:.0%} for {rate.variant} ({rate.source})" for _, rate, _ in found])
    apart = _joined(
        [f"{rate.core_hours(flops) / each.core_hours:.2f} for {each.variant}" for each, rate, flops in found]
    )
    yield (
        f"The published core-hours imply that training FLOPs are {theirs} of a core's peak of "
        f"{PEAK_FLOPS_PER_S / 1e12:g} TFLOP/s; ours are {ours}, hence {apart} of the published core-hours."
    )
    less = [rate for each, rate, flops in found if rate.estimated and rate.core_hours(flops) < each.core_hours]
    slower = [rate for each, rate, flops in found if rate.source == "compiled" and rate not in less]
    if less:
        yield (
            f"Ours ({_names(less)}) count training steps alone, without time for input, evaluation, collectives "
            "between hosts, checkpoints or restarts; the published ones may hold all of these."
        )
    if slower:
        yield (
            f"Of {_names(slower)} the step as compiled is slower than the published steps were, although nothing but "
            "steps is counted; more images a core, on fewer hosts, would let more of them share every reading of the "
            "weights."
        )
    if any(rate.source == "known" for _, rate, _ in found):
        yield (
            "The known rate is what arXiv 2310.16764 implies for F0, taken for every model alike: F0 agrees by "
            "construction, and a model that uses the cores better takes less than it says."
        )
    for source in dict.fromkeys(each.source for each in study.published):
        yield f"Published: {source}."


def _flops(published: Published, rate: Rate, train_examples: int) -> float:
    return rate.flops_per_image * published.epochs * train_examples


def _share(published: Published, flops: float) -> float:
    return flops / (published.core_hours * 3600 * PEAK_FLOPS_PER_S)


def _names(rates: Sequence[Rate]) -> str:
    return ", ".join(rate.variant for rate in rates)


def _joined(parts: Sequence[str]) -> str:
    parts = list(dict.fromkeys(parts))
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
