"""What the TPU's compiler said of a study's train steps, as a table, as JSON, and as lists of what costs most."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clusters.tpu import CLOCK_HZ, HBM_BYTES, HBM_BYTES_PER_S, PEAK_FLOPS_PER_S
from search.aot import Request
from search.formats import duration, number, percent, scientific
from search.programs import Program
from search.tables import figures_table
from search.terminal import tell
from trainables.aot.hlo import Program as Hlo
from trainables.aot.profile import Work, profile, sums

_GIB: Final = 2**30
FOOTER: Final = (
    "All figures are estimates: the TPU's compiler made them, and nothing ran on a TPU. At least: the longer of FLOPs "
    f"at {PEAK_FLOPS_PER_S / 1e12:g} TFLOP/s (bfloat16) and HBM bytes at {HBM_BYTES_PER_S / 1e9:g} GB/s. Expected: the "
    f"compiler's own count of cycles, at {CLOCK_HZ / 1e9:g} GHz. Input, and waiting for other cores, are not counted."
)


def render(asked: Request, programs: Sequence[Program], console: Console) -> None:
    """Print the programs as a table, then their errors, what was taken for granted, and what the figures are."""
    one_line = not console.is_terminal
    cores = "one core" if asked.cores == 1 else f"{asked.cores} cores ({asked.topology.accelerator})"
    first = asked.configs[0]
    console.print(
        f"[bold]{escape(asked.study.name)}[/bold]: train steps compiled for {asked.topology}, {cores}; batch "
        f"{first.batch_size:,}, {first.model.image_size} px, {first.precision}",
        soft_wrap=one_line,
    )
    console.print()
    console.print(_answers(programs))
    if any(program.costs is not None for program in programs):
        console.print()
        console.print(_estimates(asked, programs))
    console.print()
    for program in programs:
        if program.error is not None:
            tell(console, f"{program.variant} does not compile: {program.error}")
        if program.part_of_batch:
            tell(
                console,
                f"{program.variant}: a step takes {program.images:,} of the batch's "
                f"{program.settings['batch_size']:,} images (training.micro_batch_size), and the update counts in full",
            )
        if program.costs is not None and program.costs.unknown_loops:
            tell(
                console,
                f"{program.variant}: {program.costs.unknown_loops} loops of the program could not be read and count "
                "once, so FLOPs, bytes and times are too low",
            )
    for note in asked.notes:
        tell(console, note)
    tell(console, FOOTER)


def _answers(programs: Sequence[Program]) -> Table:
    """Whether each compiles, and what a step takes of a core: memory, FLOPs, bytes in HBM and in any memory."""
    headings = ("in", "HBM", f"of {HBM_BYTES / _GIB:g} GiB", "FLOPs", "HBM moved", "accessed")
    table = figures_table("The compiler's answer, per core and step (estimates)", ("variant", "compiles"), headings)
    for program in programs:
        costs = program.costs
        if costs is None:
            table.add_row(program.variant, "no", duration(program.compile_s))
            continue
        table.add_row(
            program.variant,
            "yes",
            duration(program.compile_s),
            f"{number(costs.memory['total'] / _GIB)} GiB",
            f"{costs.memory['total'] / HBM_BYTES:.0%}",
            scientific(costs.flops, 3),
            f"{number(costs.hbm_bytes / 1e9)} GB",
            f"{number(costs.bytes_accessed / 1e9)} GB",
        )
    return table


def _estimates(asked: Request, programs: Sequence[Program]) -> Table:
    """What follows for the speed of each that compiles."""
    headings = ["step\nat least", "step\nexpected", "images/s\nat most", "images/s\nexpected"]
    title = "Estimates of a core's speed"
    if asked.images is not None:
        headings += ["core-hours\nat least", "core-hours\nexpected"]
        title += f"; core-hours of an epoch of {asked.images:,} images"
    table = figures_table(title, ("variant", "binds"), headings)
    for program in programs:
        if program.costs is None:
            continue
        times = (program.roofline_s, program.expected_s)
        cells = [f"{number(1e3 * seconds)} ms" for seconds in times if seconds is not None]
        cells += [number(program.images_per_s(seconds)) for seconds in times]
        if asked.images is not None:
            cells += [number(program.core_hours(asked.images, seconds)) for seconds in times]
        table.add_row(program.variant, program.binds, *cells)
    return table


def as_json(asked: Request, programs: Sequence[Program]) -> str:
    """The programs and their estimates as JSON."""
    described: list[dict[str, Any]] = []
    for program in programs:
        values = json.loads(program.to_json())
        if asked.images is not None and program.costs is not None:
            values["estimates"] |= {
                "core_hours_per_epoch_at_least": program.core_hours(asked.images, program.roofline_s),
                "core_hours_per_epoch_expected": program.core_hours(asked.images, program.expected_s),
            }
        described.append({"variant": program.variant, **values})
    about = {
        "study": asked.study.name,
        "topology": str(asked.topology),
        "cores": asked.cores,
        "images_per_epoch": asked.images,
        "notes": [*asked.notes, FOOTER],
    }
    return json.dumps(about | {"programs": described}, indent=1)


def render_top(text: str, count: int, console: Console, *, title: str) -> None:
    """Print where a program's bytes, FLOPs and cycles go: by kind of instruction, and the `count` that move most.

    Instructions that are alike (kind, origin, tensors) are one line; tensors that hardly count are left out.
    """
    work = profile(Hlo.parse(text))
    total = sums(work)
    tell(
        console,
        f"{title}: {total.hbm_bytes / 1e9:.2f} GB of HBM, {total.flops / 1e12:.3f} TFLOP in products, "
        f"{total.cycles / CLOCK_HZ * 1e3:.2f} ms by the compiler's cycles",
    )
    kinds: dict[str, list[Work]] = defaultdict(list)
    alike: dict[tuple[str, str, tuple[str, ...]], list[Work]] = defaultdict(list)
    for each in work:
        kinds[each.kind].append(each)
        origin = each.instruction.op_name.rstrip("0123456789").rstrip(".")
        largest = max((move.bytes for move in each.moves), default=0)
        tensors = tuple(str(move) for move in each.moves if move.bytes > largest / 100)
        alike[each.kind, origin, tensors].append(each)
    tell(console, f"{'times':>7} {'HBM GB':>9} {'share':>7} {'ms':>9} {'GFLOP':>10} {'of peak':>8}  kind")
    for kind, group in sorted(kinds.items(), key=lambda item: -_hbm(item[1])):
        if _hbm(group) > total.hbm_bytes / 1000 or sum(each.cycles for each in group) > total.cycles / 1000:
            tell(console, f"{_figures(group, total.hbm_bytes)}  {kind}")
    tell(console, f"{'times':>7} {'HBM GB':>9} {'share':>7} {'ms':>9} {'GFLOP':>10} {'of peak':>8}  kind: tensors")
    for (kind, origin, moves), group in sorted(alike.items(), key=lambda item: -_hbm(item[1]))[:count]:
        tell(console, f"{_figures(group, total.hbm_bytes)}  {kind}: {', '.join(moves)}; {origin}")


def _hbm(group: Sequence[Work]) -> int:
    return sum(each.bytes_in("HBM") for each in group)


def _figures(group: Sequence[Work], of_bytes: int) -> str:
    moved, seconds = _hbm(group), sum(each.cycles for each in group) / CLOCK_HZ
    flops = sum(each.times * each.flops for each in group)
    of_peak = percent(flops / PEAK_FLOPS_PER_S / seconds) if flops and seconds else ""
    return (
        f"{sum(each.times for each in group):7,} {moved / 1e9:9.3f} {percent(moved / max(1, of_bytes)):>7} "
        f"{seconds * 1e3:9.3f} {flops / 1e9:10.2f} {of_peak:>8}"
    )
