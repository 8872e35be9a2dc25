"""The law as a whole: repeatable, honest about what was left out, and one JSON object."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from search.law import HeldOut, Law, Refused, Run, RunTable, fit_law
from search.law.as_json import law_as_json
from search.law.grouping import budgets_of
from search.law.report_text import render_law
from search.law.runs import read_csv
from tests.search.law.made_up import TRUE, table

BUDGETS = (1e10, 4e10, 1.6e11, 6.4e11, 2.6e12)
SIZES = (3e4, 1e5, 3e5, 1e6)


@pytest.fixture(scope="module")
def law() -> Law:
    return fit_law(table(BUDGETS, SIZES, seeds=2), bootstraps=200, leave_out=1)


def rendered(law: Law, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    render_law(law, console, [law.forecast(1e14)])
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_the_same_seed_gives_the_same_numbers_and_another_nearly_the_same() -> None:
    runs = table(BUDGETS, SIZES)
    first, again, other = (fit_law(runs, bootstraps=200, seed=seed) for seed in (0, 0, 1))
    assert law_as_json(first) == law_as_json(again)
    one, two = first.forecast(1e13), other.forecast(1e13)
    assert not isinstance(one, Refused)
    assert not isinstance(two, Refused)
    assert one.loss.value == two.loss.value
    assert one.loss.low != two.loss.low


def test_the_order_of_the_runs_does_not_matter() -> None:
    runs = table(BUDGETS, SIZES)
    there, back = fit_law(runs, bootstraps=100), fit_law(replace(runs, runs=runs.runs[::-1]), bootstraps=100)
    assert [budget.loss for budget in there.budgets] == [budget.loss for budget in back.budgets]
    assert there.plain.exponent.value == pytest.approx(back.plain.exponent.value)  # type: ignore[union-attr]


def test_units_of_compute_do_not_matter() -> None:
    runs = table(BUDGETS, SIZES)
    scaled = replace(runs, runs=tuple(replace(run, flops=run.flops * 1e12) for run in runs.runs))
    here, there = fit_law(runs, bootstraps=100), fit_law(scaled, bootstraps=100)
    assert here.plain.exponent.value == pytest.approx(there.plain.exponent.value)  # type: ignore[union-attr]
    assert here.surface.size_exponent.value == pytest.approx(there.surface.size_exponent.value)  # type: ignore[union-attr]


def test_what_was_left_out_is_predicted_from_the_others_alone() -> None:
    runs = table(BUDGETS, SIZES)
    spoilt = replace(
        runs, runs=tuple(replace(run, loss=run.loss * (2 if run.flops == BUDGETS[-1] else 1)) for run in runs.runs)
    )
    true, wrong = (fit_law(each, bootstraps=200, leave_out=1).held_out for each in (runs, spoilt))
    assert isinstance(true, HeldOut)
    assert isinstance(wrong, HeldOut)
    assert true.rows[0].predicted == wrong.rows[0].predicted
    assert true.rows[0].inside
    assert not wrong.rows[0].inside
    assert wrong.rows[0].error == pytest.approx((1 + true.rows[0].error) / 2 - 1)
    assert abs(true.rows[0].error) < 0.1


def test_of_a_cloud_no_bin_that_is_left_out_has_a_say_in_what_stands_for_the_others() -> None:
    rng = np.random.default_rng(1)
    runs = [
        Run(c, (1.2 + 300 * size**-0.35 + 400 * (c / 6 / size) ** -0.3) * np.exp(0.01 * rng.normal()), size)
        for c, size in zip(10 ** rng.uniform(17, 21, 300), 10 ** rng.uniform(7, 10, 300), strict=True)
    ]
    found = []
    for raised in (1.0, 3.0):
        table = [replace(run, loss=run.loss * (raised if run.flops > 2e20 else 1)) for run in runs]
        law = fit_law(RunTable("cloud", tuple(table)), bootstraps=100, leave_out=5)
        assert isinstance(law.held_out, HeldOut)
        assert min(run.flops for budget in law.budgets[-5:] for run in budget.runs) < 2e20
        found.append({row.flops: row.predicted for row in law.held_out.rows})
    same = found[0].keys() & found[1].keys()  # what stands for a bin that is left out may well change
    assert same
    assert all(found[0][flops] == found[1][flops] for flops in same)


def test_a_cloud_stays_one_when_its_last_bin_is_left_out() -> None:
    errors = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        runs = [
            Run(c, (1.2 + 300 * size**-0.35 + 400 * (c / 6 / size) ** -0.3) * np.exp(0.01 * rng.normal()), size)
            for c, size in zip(10 ** rng.uniform(17, 21, 24), 10 ** rng.uniform(7, 9.5, 24), strict=True)
        ]
        budgets, by = budgets_of(runs)
        kept = [run for budget in budgets[:-1] for run in budget.runs]
        if by != "bins" or budgets_of(kept)[1] == "bins":
            continue
        held_out = fit_law(RunTable("cloud", tuple(runs)), bootstraps=100, leave_out=1).held_out
        assert isinstance(held_out, HeldOut)
        errors.append(held_out.rows[0].error)
    assert len(errors) >= 5
    assert abs(np.mean(errors)) < 0.03  # as budgets of one run each, whatever its size, they are foretold 5 % too high


def test_leaving_out_too_many_is_refused_with_the_reason() -> None:
    held_out = fit_law(table(BUDGETS, SIZES), bootstraps=100, leave_out=3).held_out
    assert isinstance(held_out, Refused)
    assert held_out.reason.startswith("without the 3 largest of 5 budgets: 2 budgets given")
    one = fit_law(table(BUDGETS[:3], SIZES), bootstraps=100, leave_out=1).held_out
    assert isinstance(one, Refused)
    assert one.reason.startswith("without the largest of 3 budgets: 2 budgets given")
    nothing = fit_law(table(BUDGETS, SIZES), bootstraps=100, leave_out=9).held_out
    assert isinstance(nothing, Refused)


def test_the_noise_between_seeds_is_told(law: Law) -> None:
    assert law.noise is not None
    assert law.noise.log_sd == pytest.approx(TRUE.noise, rel=0.3)


def test_the_law_is_one_json_object_with_values_lows_and_highs(law: Law) -> None:
    found = json.loads(json.dumps(law_as_json(law, [law.forecast(1e14)]), allow_nan=False))
    assert found["runs"] == len(law.runs)
    for part in ("plain", "saturating"):
        assert set(found[part]["exponent"]) == {"value", "low", "high"}
    for name in ("irreducible", "size_exponent", "examples_exponent", "size_coefficient", "examples_coefficient"):
        assert found["surface"][name]["low"] <= found["surface"][name]["value"] <= found["surface"][name]["high"]
    assert [row["flops"] for row in found["compute_optimal"]["rows"]] == [*(b.flops for b in law.budgets), 1e14]
    assert found["forecasts"][0]["loss"]["low"] < found["forecasts"][0]["loss"]["value"]
    assert found["held_out"]["rows"][0]["inside"] in (True, False)
    assert len(found["learning_rates"]) == len(BUDGETS) * len(SIZES)


def pairs(loss: Callable[[float, float], float]) -> list[Run]:
    return [
        Run(flops, loss(size, flops / 6 / size), size, flops / 6 / size, rate, seed=seed)
        for flops in (1e17, 1e18, 1e19, 1e20)
        for size in (1e7, 1e8, 1e9)
        for rate in (0.1, 0.2, 0.4)
        for seed in (0, 1)
    ]


RNG = np.random.default_rng(0)
ODD: dict[str, list[Run]] = {
    "one run": [Run(1e18, 3.0)],
    "one budget": [Run(1e18, 3 - k / 10) for k in range(5)],
    "loss that rises": [Run(10.0**k, 2 + k / 10) for k in range(5)],
    "no noise": [Run(10.0**k, 3 * 10 ** (-0.1 * k)) for k in range(6)],
    "nothing but noise": [Run(10.0**k, float(np.exp(2 * RNG.standard_normal()))) for k in range(4)],
    "a step": [Run(10.0**k, 3.0 if k == 0 else 2.0) for k in range(6)],
    "tiny losses": [Run(10.0**k, 1e-30 * 10 ** (-0.1 * k) * (1 + k % 2 / 99)) for k in range(5)],
    "huge FLOPs": [Run(10.0 ** (70 + 3 * k), 1e50 * 10 ** (-0.1 * k) * (1 + k % 2 / 99)) for k in range(6)],
    "a bare cloud": [Run(10 ** RNG.uniform(17, 21), float(3 + RNG.exponential())) for _ in range(2000)],
    "losses that overflow": [Run(10.0 ** (10 + k), 10.0 ** (90 - 40 * k)) for k in range(5)],
    "all the same": [Run(10.0**k, 2.0) for k in range(5)],
    "a valley": [Run(10.0**k, 2.0 + abs(k - 2)) for k in range(5)],
    "a flat surface": pairs(lambda _, __: 2.0),
    "size alone": pairs(lambda size, _: 1 + 100 * size**-0.3),
    "examples alone": pairs(lambda _, examples: 1 + 100 * examples**-0.3),
    "a surface of noise": pairs(lambda _, __: float(np.exp(RNG.standard_normal()))),
}


def test_whatever_a_csv_may_hold_gives_numbers(tmp_path: Path) -> None:
    ends = {
        "flops": (0, 60),
        "loss": (-12, 12),
        "parameters": (0, 30),
        "examples": (-3, 30),
        "learning_rate": (-12, 12),
    }
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rows = [
            [10.0 ** (int(rng.choice(span)) if rng.random() < 0.6 else rng.uniform(*span)) for span in ends.values()]
            for _ in range(int(rng.choice([5, 8, 30])))
        ]
        file = tmp_path / "odd.csv"
        file.write_text("\n".join([",".join(ends), *(",".join(f"{cell:.17g}" for cell in row) for row in rows)]))
        law = fit_law(read_csv(file), bootstraps=100)
        json.dumps(law_as_json(law, [law.forecast(1e60)]), allow_nan=False)


@pytest.mark.parametrize("name", ODD)
def test_whatever_the_runs_there_is_an_answer_or_a_reason(name: str) -> None:
    law = fit_law(RunTable(name, tuple(ODD[name])), bootstraps=100, leave_out=1)
    found = law_as_json(law, [law.forecast(1e30)])
    json.dumps(found, allow_nan=False)
    assert "refused" in found["plain"] or found["plain"]["exponent"]["value"] is not None
    assert rendered(law)
    if name == "no noise":
        assert law.chosen.form == "plain"  # type: ignore[union-attr]


def test_refused_parts_say_why_in_json_and_text() -> None:
    law = fit_law(RunTable("few.csv", (Run(1e18, 3.0), Run(4e18, 2.5))), bootstraps=100)
    found = law_as_json(law, [law.forecast(1e20)])
    for part in ("plain", "saturating", "straightness", "surface", "compute_optimal", "iso_compute"):
        assert set(found[part]) == {"refused"}
    assert found["forecasts"] == [found["plain"]]
    text = rendered(law)
    assert text.startswith("No forecast: 2 budgets given; a power law needs at least 3; search more budgets")


@pytest.mark.parametrize("width", [60, 100, 200])
def test_the_text_begins_with_the_answer(law: Law, width: int) -> None:
    text = rendered(law, width)
    assert text.startswith("At 1.00e14 FLOPs: held-out loss ")
    for part in ("Loss falls with compute as", "L(N, D) =", "Iso-compute", "Best learning rates", "Held out"):
        assert part in text
    assert f"From {len(law.runs):,} runs of made up in 5 budgets" in text


def test_an_exponent_is_written_with_its_own_sign(law: Law) -> None:
    assert "^--" not in rendered(law)
    rising = fit_law(RunTable("rising", tuple(Run(10.0**k, 2 + k / 10) for k in range(5))), bootstraps=100)
    assert ")^0.0" in rendered(rising)


def test_a_cell_with_one_rate_says_so() -> None:
    runs = [*table(BUDGETS, SIZES).runs, Run(BUDGETS[0], 9.0, 1e7, BUDGETS[0] / 150 / 1e7, 0.6, "alone")]
    text = rendered(fit_law(RunTable("x", tuple(runs)), bootstraps=100))
    assert "one rate tried" in text
    assert "unknown" not in text


def test_lines_fit_the_terminal(law: Law) -> None:
    assert max(map(len, rendered(law, 80).splitlines())) <= 80


def test_how_many_cells_were_compared_is_in_the_json(law: Law) -> None:
    found = law_as_json(law)["compared"]
    assert set(found) == {"cells", "left_out", "corrected", "text"}
    assert found["cells"] + found["left_out"] == len(law.cells)
