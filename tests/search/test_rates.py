"""How fast a TPU core trains a variant: which source a plan goes by, and what follows from it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from statistics import mean

import pytest

from models.costs import costs
from search.programs import RECORDED, Programs, images_per_core, load_programs, record, recorded_programs
from search.rates import TPU_V4, compiled_rates, core_hour_rates, published_rate, rates_on_tpu
from search.results import MeasuredRates
from search.study import Study, read_study
from search.units import KNOWN_FLOPS_PER_CORE_SECOND
from tests.search.programs import compiled

KNOWN = KNOWN_FLOPS_PER_CORE_SECOND[TPU_V4]


def study(folder: Path, *, budgets: str = "[1 TPU-v4 core-hours]", compute: str = "{}", **training: int) -> Study:
    given = "".join(f", {name}: {value}" for name, value in training.items())
    return read_study(f"""
name: mini
data: {{source: digits, image_size: 8}}
model: {{variants: [F0, F1, F3], width: 0.0625, group_size: 8, stem: small}}
budgets: {budgets}
training: {{batch_size: 64{given}}}
compute: {compute}
storage: {folder}
""")


# ---------------------------------------------------------------- the source


def test_a_measurement_goes_before_the_compiler_and_the_compiler_before_what_is_known(tmp_path: Path) -> None:
    of = study(tmp_path)
    programs = {"F0": compiled(of, "F0"), "F1": compiled(of, "F1")}
    rates = rates_on_tpu(of, programs, 10, MeasuredRates(2e12, {"F0": 3e12}))
    assert {variant: rate.source for variant, rate in rates.items()} == {
        "F0": "measured",
        "F1": "compiled",
        "F3": "others",
    }
    assert (rates["F0"].flops_per_core_second, rates["F3"].flops_per_core_second) == (3e12, 2e12)
    assert [rate.estimated for rate in rates.values()] == [False, True, True]
    without = rates_on_tpu(of, programs, 10, None)
    assert [rate.source for rate in without.values()] == ["compiled", "compiled", "known"]
    assert without["F3"].flops_per_core_second == KNOWN


@pytest.mark.parametrize(("device", "source"), [("tpu", "given"), ("cpu", "compiled"), ("auto", "compiled")])
def test_the_studys_own_rate_counts_where_it_is_a_tpus(tmp_path: Path, device: str, source: str) -> None:
    of = study(tmp_path, compute=f"{{device: {device}, flops_per_core_second: 1e12}}")
    assert rates_on_tpu(of, {"F0": compiled(of)}, 10, None)["F0"].source == source


def test_what_was_compiled_gives_images_a_second_of_a_core(tmp_path: Path) -> None:
    of = study(tmp_path)
    rate = compiled_rates(of, {"F0": compiled(of, images=64, cores=8, expected_s=0.004, at_least_s=0.001)}, 10)["F0"]
    assert rate.images_per_s == pytest.approx(8 / 0.004, rel=1e-5)
    assert rate.images_per_s_at_most == pytest.approx(8 / 0.001)
    assert rate.images_per_core == 8
    flops = rate.flops_per_image * 1000
    assert flops == costs(of.model_size("F0", 10)).training_flops * 1000
    assert rate.core_hours(flops) == pytest.approx(1000 / 2000 / 3600, rel=1e-5)
    assert rate.core_hours_at_least(flops) == pytest.approx(1000 / 8000 / 3600)


def test_memory_is_told_of_the_very_step_that_the_study_takes(tmp_path: Path) -> None:
    """Not of one with other images a core, nor of a whole batch where the study takes parts of that size."""
    of = study(tmp_path, compute="{device: tpu}")
    in_parts = study(tmp_path, compute="{device: tpu}", micro_batch_size=16)
    for asking, program, told in (
        (of, compiled(of, images=64), 2**30),
        (of, compiled(of, images=128), None),
        (of, compiled(of, classes=1000), None),
        (in_parts, compiled(in_parts, images=16), None),
        (in_parts, compiled(in_parts, images=16, part_of_batch=True), 2**30),
    ):
        (rate,) = compiled_rates(asking, {"F0": program}, 10).values()
        assert rate.memory_of_core == told


def test_a_step_in_loops_is_not_taken_for_one_without(tmp_path: Path) -> None:
    looped, single = (study(tmp_path, compute=f"{{loop_from: {start}}}") for start in (2, "null"))
    Programs(looped).put(compiled(looped, "F1"))
    Programs(looped).put(compiled(looped, "F0"))
    assert set(load_programs(looped)) == {"F0", "F1"}
    assert load_programs(single) == {}
    assert load_programs(study(tmp_path, compute="{loop_from: 5}")) == {}  # other loops, in both
    Programs(single).put(compiled(single, "F0"))
    assert set(load_programs(study(tmp_path, compute="{loop_from: 24}"))) == {"F0"}  # which has none from there on


def test_of_two_programs_as_large_that_of_a_part_is_a_study_in_parts(tmp_path: Path) -> None:
    in_parts, whole = study(tmp_path, micro_batch_size=16), study(tmp_path)
    Programs(in_parts).put(compiled(in_parts, images=16, part_of_batch=True, compiled_at=1.0))
    Programs(in_parts).put(compiled(in_parts, images=16, compiled_at=2.0, hlo_sha256="1" * 64))
    assert load_programs(in_parts)["F0"].part_of_batch
    assert not load_programs(whole)["F0"].part_of_batch


def test_one_core_and_a_slice_of_many_are_compared_by_images_of_a_core(tmp_path: Path) -> None:
    of = study(tmp_path)
    one, many = (compiled_rates(of, {"F0": compiled(of, images=8 * n, cores=n)}, 10)["F0"] for n in (1, 8))
    assert one == many


def test_flops_a_second_are_those_of_the_program_that_was_compiled(tmp_path: Path) -> None:
    """Of other classes than the data's: the rate is that program's, core-hours are by the data's own FLOPs."""
    of = study(tmp_path)
    rate = compiled_rates(of, {"F0": compiled(of, classes=1000)}, 10)["F0"]
    assert rate.flops_per_core_second == pytest.approx(costs(of.model_size("F0", 1000)).training_flops * 2000, rel=1e-5)
    assert rate.flops_per_image == costs(of.model_size("F0", 10)).training_flops


def test_a_variant_that_the_study_has_not_takes_what_is_known(tmp_path: Path) -> None:
    of = study(tmp_path)
    rate = published_rate(of, "F7", 10, {})
    assert (rate.source, rate.flops_per_core_second) == ("known", KNOWN)


# ---------------------------------------------------------------- budgets in core-hours


def test_core_hours_are_converted_by_the_mean_of_what_was_compiled(tmp_path: Path) -> None:
    of = study(tmp_path)
    assert core_hour_rates(of, 10, {}) == {TPU_V4: KNOWN}
    for variant, seconds in (("F0", 0.004), ("F1", 0.016)):
        Programs(of).put(compiled(of, variant, expected_s=seconds))
    rate = core_hour_rates(of, 10, {})[TPU_V4]
    each = compiled_rates(of, load_programs(of), 10).values()
    budget = rate * 3600  # FLOPs of a core-hour, which each variant spends
    assert mean(one.core_hours(budget) for one in each) == pytest.approx(1.0)


def test_a_run_goes_on_by_the_rates_it_began_with(tmp_path: Path) -> None:
    of = study(tmp_path)
    Programs(of).put(compiled(of))
    assert core_hour_rates(of, 10, {"core_hour_rates": {TPU_V4: 5e12}}) == {TPU_V4: 5e12}
    assert core_hour_rates(of, 10, {"identity": {}}) == {TPU_V4: KNOWN}  # of a version that kept none


def test_without_such_budgets_nothing_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.rates.load_programs", lambda _: pytest.fail("programs were looked up"))
    assert core_hour_rates(study(tmp_path, budgets="[1e10 FLOPs]"), 10, {}) == {TPU_V4: KNOWN}


# ---------------------------------------------------------------- which program


@pytest.mark.parametrize(
    ("compute", "training", "images"),
    [
        ("{}", {}, 8),
        ("{workers_per_slice: 2}", {}, 4),
        ("{}", {"micro_batch_size": 16}, 2),
        ("{workers_per_slice: 4}", {"micro_batch_size": 32}, 2),
    ],
)
def test_a_cores_images_are_those_of_a_slice_of_hosts(
    tmp_path: Path, compute: str, training: dict[str, int], images: float
) -> None:
    assert images_per_core(study(tmp_path, compute=compute, **training)) == images


def test_the_program_of_nearly_as_many_images_a_core_is_taken(tmp_path: Path) -> None:
    of = study(tmp_path)
    near, far, one_core = (compiled(of, images=n, cores=c) for n, c in ((48, 8), (640, 8), (6, 1)))
    for program in (near, far, one_core):
        Programs(of).put(program)
    assert load_programs(of)["F0"] == near


def test_programs_that_come_with_the_repository_stand_in_for_those_of_the_study(tmp_path: Path) -> None:
    of, file = study(tmp_path), tmp_path / "programs.json"
    other = study(tmp_path, micro_batch_size=16)
    record([compiled(of, "F0"), compiled(of, "F1", images=8, cores=1), compiled(of, "F3", images=640)], file)
    found = load_programs(of, file)
    assert {variant: program.cores for variant, program in found.items()} == {"F0": 8, "F1": 1}  # not F3: 80 a core
    assert load_programs(other, file) == {}
    own = compiled(of, "F0", images=640, compiled_at=0.0)
    Programs(of).put(own)
    assert load_programs(of, file) == {"F0": own, "F1": found["F1"]}


def test_a_recorded_program_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    of, file = study(tmp_path), tmp_path / "programs.json"
    first, second = compiled(of), compiled(of, hlo_sha256="1" * 64, compiled_at=2.0)
    refused = compiled(of, "F3", error="too large", costs=None)
    assert record([first, compiled(of, "F1"), refused], file) == ["F0", "F1"]
    assert record([second], file) == ["F0"]
    kept = {program.variant: program for program in recorded_programs(file)}
    assert kept == {"F0": second, "F1": compiled(of, "F1")}
    assert sorted(json.loads(file.read_text())) == sorted(program.name for program in kept.values())


def test_programs_of_another_version_are_passed_over(tmp_path: Path) -> None:
    of, file = study(tmp_path), tmp_path / "programs.json"
    record([compiled(of)], file)
    values = {name: values | {"format": 0} for name, values in json.loads(file.read_text()).items()}
    file.write_text(json.dumps(values))
    assert recorded_programs(file) == recorded_programs(tmp_path / "none.json") == []


def test_what_comes_with_the_repository_can_be_read() -> None:
    assert len(recorded_programs(RECORDED)) == len(json.loads(RECORDED.read_text()))
    assert all(program.costs is not None for program in recorded_programs())


def test_a_rate_is_shown_with_its_share_of_the_peak(tmp_path: Path) -> None:
    rate = published_rate(study(tmp_path), "F0", 10, {})
    assert dataclasses.replace(rate, flops_per_core_second=68.75e12).utilisation == 0.5
