"""Programs as if the TPU's compiler had compiled them, with the speed that a test asks for."""

from __future__ import annotations

import dataclasses
from typing import Any

from clusters.tpu import CLOCK_HZ, PEAK_FLOPS_PER_S
from search.aot import _config
from search.programs import Costs, Program, settings_of
from search.study import Study


def compiled(
    study: Study,
    variant: str = "F0",
    *,
    images: int = 64,
    cores: int = 8,
    classes: int = 10,
    expected_s: float = 0.004,
    at_least_s: float = 0.001,
    **changes: Any,
) -> Program:
    """A step of `images` images over `cores` cores that is expected to take `expected_s`, and `at_least_s` at least.

    `changes` are fields of the program.
    """
    settings = settings_of(_config(study, variant, classes, images), "v4:2x2x1", cores)
    costs = Costs(
        flops=at_least_s * PEAK_FLOPS_PER_S,
        bytes_accessed=0.0,
        hbm_bytes=0,
        cycles=round(expected_s * CLOCK_HZ),
        memory={"total": 2**30},
    )
    program = Program(
        settings=settings,
        hlo_sha256="0" * 64,
        images=images,
        part_of_batch=False,
        source="s",
        versions={"libtpu": "1.0"},
        compiled_at=1.0,
        compile_s=75.0,
        error=None,
        costs=costs,
    )
    return dataclasses.replace(program, **changes)
