"""A plan for TPUs: by which source it reckons, what is an estimate, and how it compares with what others published."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from search.commands import plan_study
from search.devices import metered_cores
from search.plan import Plan, plan, render_plan
from search.programs import Programs, load_programs
from search.rates import rates_on_tpu
from search.results import MeasuredRates
from search.study import Study, StudyError, load_study, read_study
from tests.search.programs import compiled

STUDIES = Path(__file__).resolve().parents[2] / "studies"
STUDY = """
name: mini
data: {source: digits, image_size: 8}
model: {variants: [F0, F1, F3], width: 0.0625, group_size: 8, stem: small}
budgets: [2e15 FLOPs, 4e15 FLOPs]
epochs: {min: 0.001, max: 1e6}
training: {batch_size: 64, micro_batch_size: 32}
compute: {device: cpu, slices: 2}
published:
  - {variant: F0, epochs: 4, core_hours: 0.001, source: a paper by hand}
  - {variant: F7, epochs: 8, core_hours: 0.002, source: a paper by hand}
"""


def study(folder: Path, more: str = "") -> Study:
    return read_study(f"{STUDY}storage: {folder}\n{more}", source="mini.yaml")


def planned(of: Study, measured: MeasuredRates | None = None) -> Plan:
    rates = rates_on_tpu(of, load_programs(of), 10, measured)
    return plan(of, 1000, 100, 10, measured=measured, rates=rates)


def shown(plan: Plan, width: int = 80) -> str:
    out = io.StringIO()
    render_plan(plan, Console(file=out, width=width))
    return out.getvalue()


def test_a_cell_costs_what_the_program_says(tmp_path: Path) -> None:
    of = study(tmp_path)
    Programs(of).put(compiled(of, "F0", images=32, expected_s=0.004, at_least_s=0.001))
    made = planned(of)
    cell = made.budgets[0].cell("F0")
    images = cell.steps * 64
    assert made.core_hours(cell) == pytest.approx(images / 1000 / 3600, rel=1e-5)  # 4 images a core in 4 ms
    assert made.core_hours_at_least(cell) == pytest.approx(images / 4000 / 3600, rel=1e-5)
    assert made.core_hours_at_least(made.budgets[0].cell("F1")) is None
    assert made.trial_seconds(cell) == pytest.approx(images / 1000 / 8, rel=1e-5)
    assert (made.device, made.cores_per_slice) == ("tpu", metered_cores(of, "tpu"))


def test_a_plan_says_where_each_rate_is_from_and_how_to_come_by_a_better_one(tmp_path: Path) -> None:
    of = study(tmp_path)
    Programs(of).put(compiled(of, "F1", images=32))
    text = shown(planned(of), 300)
    rows = {line.split()[0]: line.split()[1] for line in text.splitlines() if " M " in line}
    assert rows == {"F0": "known", "F1": "compiled", "F3": "known"}
    assert "Compiled (F1): the TPU compiler's estimates for a train step of 4 images a core; " in text
    assert "Known (F0, F3): 3.99e+13 FLOPs per core-second (29% of the peak)" in text
    assert "convscale aot mini.yaml --batch-size 32 --variant F0 --variant F3" in text


def test_a_program_of_other_images_a_core_is_said(tmp_path: Path) -> None:
    of = study(tmp_path)
    Programs(of).put(compiled(of, "F0", images=512))
    assert "a train step of 64 images a core, and the study has 4; expected" in shown(planned(of), 300)


def test_what_was_measured_wins_and_is_the_only_thing_that_is_no_estimate(tmp_path: Path) -> None:
    of = study(tmp_path)
    for variant in ("F0", "F1"):
        Programs(of).put(compiled(of, variant, images=32))
    text = shown(planned(of, MeasuredRates(2e12, {"F0": 3e12})), 300)
    table = {line.split()[0]: line for line in text.splitlines() if " M " in line}
    assert "measured " in table["F0"]
    assert "~" not in table["F0"]
    assert all(figure.startswith("~") for figure in table["F1"].split()[4:])
    assert "others" in table["F3"]
    assert "~" in table["F3"]
    assert "Measured (F0): by an earlier run of this study on TPUs." in text


def test_published_core_hours_stand_beside_ours(tmp_path: Path) -> None:
    of = study(tmp_path)
    Programs(of).put(compiled(of, "F0", images=32, expected_s=0.004, at_least_s=0.001))
    made = planned(of)
    text = shown(made, 300)
    (row,) = [line.split() for line in text.splitlines() if line.startswith("F0") and " 0.00100 " in line]
    flops = 4 * 1000 * made.rates["F0"].flops_per_image
    assert row[:3] == ["F0", "4", "0.00100"]
    assert row[3] == f"{flops / (3.6 * 137.5e12):.0%}"
    assert row[4] == "~0.00111"  # 4,000 images at 1,000 images a second
    assert row[5] == "~0.000278"
    assert "imply that training FLOPs are " in text
    assert "hence 1.11 for F0 and " in text
    assert "Of F0 the step as compiled is slower than the published steps were" in text
    assert "The known rate is what arXiv 2310.16764 implies for F0" in text  # of F7
    assert "Published: a paper by hand.\n" in text
    assert text.count("Published: ") == 1


def test_what_ours_leave_out_is_said_where_they_are_less(tmp_path: Path) -> None:
    of = study(tmp_path)
    Programs(of).put(compiled(of, "F0", images=32, expected_s=0.002))
    text = shown(planned(of), 300)
    assert "hence 0.56 for F0 and " in text
    assert "Ours (F0, F7) count training steps alone, without time for input, evaluation, collectives between" in text
    assert "is slower than" not in text


def test_a_plan_for_this_machine_has_none_of_it(tmp_path: Path) -> None:
    text = shown(plan(study(tmp_path), 1000, 100, 10), 300)
    assert "TPU" not in text


def test_everything_fits_a_terminal(tmp_path: Path) -> None:
    of = study(tmp_path)
    Programs(of).put(compiled(of, "F0", images=32))
    text = shown(planned(of, MeasuredRates(2e12, {"F1": 3e12})))
    assert "…" not in text
    assert "~" in text


def test_the_command_plans_for_a_device_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hosts = STUDY.replace("slices: 2", "slices: 2, workers_per_slice: 2")
    Path("mini.yaml").write_text(hosts)
    for device, said in ((None, "Speed of a TPU-v4 core"), ("TPU-v4", "2 slices of 16 TPU cores")):
        out = io.StringIO()
        plan_study(Path("mini.yaml"), Console(file=out, width=300), device=device)
        assert (said in out.getvalue()) == (device is not None)
    refusal = "compute.workers_per_slice: 2 given; allowed on tpu: the hosts of compute.accelerator; set device: tpu"
    assert f"a search refuses this: mini.yaml: {refusal}" in out.getvalue()
    Path("mini.yaml").write_text(STUDY.replace("batch_size: 64", "batch_size: 66"))
    with pytest.raises(StudyError, match="multiples of the 4 TPU chips"):
        plan_study(Path("mini.yaml"), Console(file=out), device="tpu-v4")


@pytest.mark.slow
def test_the_papers_study_is_planned_with_its_own_core_hours_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its data, which are not here. Whatever has been compiled for it, every budget buys several models."""
    study = load_study(STUDIES / "jft-paper.yaml")
    assert [quantity.amount for quantity in study.budgets][-1] == 1.6e22
    assert study.learning_rates == (0.2, 0.4, 0.8, 1.6, 3.2)
    monkeypatch.chdir(STUDIES.parent)
    out = io.StringIO()
    plan_study(STUDIES / "jft-paper.yaml", Console(file=out, width=80))
    text = out.getvalue()
    assert "…" not in text
    assert "4,000,000,000 training and 130,000 held-out" in text
    assert text.count("Budget ") == len(study.budgets)
    for variant, epochs, hours in (("F0", "0.25", "400"), ("F7+", "8", "110,000")):
        (row,) = [line.split() for line in text.splitlines() if line.split()[:3] == [variant, epochs, hours]]
        assert row[-1].startswith("~")
    assert "data.path: 'jft-4b' is not here" in text
    assert "Memory of a worker: F0 20.5 GB, " in text  # as compiled, which is with this repository
    assert "more memory than" not in text
