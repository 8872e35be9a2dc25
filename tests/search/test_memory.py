"""What a study's trainings take of a machine's memory is told before they are tried."""

from __future__ import annotations

import pytest

from search import memory
from search.memory import memory_by_variant, memory_here, memory_warnings
from search.study import Study, read_study

STUDY = """
name: mini
data: {source: digits, image_size: 8}
model: {variants: [F0, F1], width: 0.0625, group_size: 8, stem: small}
budgets: [1e10 FLOPs]
training: {batch_size: 64, precision: float32}
"""


def study(more: str = "") -> Study:
    return read_study(STUDY + more, source="mini.yaml")


def test_a_deeper_variant_takes_more_and_a_worker_holds_its_share_of_the_batch() -> None:
    alone = memory_by_variant(study(), 10)
    shared = memory_by_variant(study("compute: {workers_per_slice: 4}"), 10)
    assert alone["F1"] > alone["F0"] > shared["F0"] > alone["F0"] / 4


def test_a_step_in_parts_holds_one_part() -> None:
    whole = memory_by_variant(study(), 10)
    small = read_study(STUDY.replace("batch_size: 64", "batch_size: 64, micro_batch_size: 16"), source="mini.yaml")
    assert memory_by_variant(small, 10)["F0"] < whole["F0"] / 2


def test_a_machine_that_is_too_small_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_here", lambda study, device: 2_000_000_000)
    assert memory_warnings(study(), {"F0": 1_900_000_000, "F1": 2_100_000_000}, "cpu") == [
        "F1 takes more memory than the 2.00 GB that this machine has for a worker; set "
        "training.micro_batch_size lower, or compute.slices"
    ]
    assert memory_warnings(study(), {"F0": 1_900_000_000}, "cpu") == []


def test_on_a_tpu_every_core_holds_the_weights_and_its_share_of_the_images() -> None:
    alone, tpu = memory_by_variant(study(), 10), memory_by_variant(study(), 10, "tpu")
    assert alone["F0"] < tpu["F0"] < 8 * alone["F0"]
    assert memory_here(study(), "tpu") == 4 * 32 * 2**30
    (line,) = memory_warnings(study(), {"F0": 10**12}, "tpu")
    assert line == (
        "F0 takes more memory than the 137 GB that a worker's TPU chips have; set training.micro_batch_size lower"
    )


def test_workers_share_the_main_memory_and_a_gpu_that_is_not_here_is_not_known() -> None:
    whole, quarter = (memory_here(study(f"compute: {{slices: {slices}}}"), "cpu") for slices in (1, 4))
    assert whole is not None
    assert quarter == whole // 4
    assert memory_here(study(), "cuda") is None
