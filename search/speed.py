"""How fast a study's trials train, for what forecasts say they cost: one rule for searches and for commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from search.devices import device_here, metered_cores
from search.law.forecast import Speed, speed_of_state
from search.ledger import Record
from search.programs import load_programs
from search.rates import has_rates_of, rates_on_tpu
from search.results import measured_rates
from search.state import StudyState
from search.study import Study


def speed_of_study(study: Study, records: Sequence[Record]) -> Speed:
    """How fast the study's compute trains its variants: as its newest run measured, where that trained on the same
    device, or else as a plan would have it. Where the study leaves the device, or a slice's CPU threads, to the machine
    or cluster, they are those of the run's newest session.
    """
    state, compute = StudyState.of(records), study.compute
    last = next((record for record in reversed(records) if record.event == "session_started"), None)
    device = (last.get("device") if last is not None and compute.device == "auto" else None) or device_here(study)
    cores = metered_cores(study, device)
    if compute.cores_per_slice is None and device not in ("cuda", "tpu") and last is not None:
        cores = int(last["cores_per_slice"]) if last.get("device") == device else cores
    here = state if has_rates_of(study, records, device) else StudyState()
    speed = speed_of_state(study, here, cores)
    if device != "tpu":
        return speed
    known = rates_on_tpu(study, load_programs(study), int(state.opened["classes"]), measured_rates(here))
    return replace(
        speed, flops_per_core_second={variant: rate.flops_per_core_second for variant, rate in known.items()}
    )
