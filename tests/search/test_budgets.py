"""A budget buys epochs of each variant; what makes no sense is left out, warned of, or refused before anything runs."""

from __future__ import annotations

import pytest

from models.costs import costs
from models.families import ModelSize
from search.budgets import Budget, amounts_in_flops, open_budgets, slug
from search.study import Study, StudyError, read_study

EXAMPLES = 1000
F0, F1 = (
    costs(ModelSize(variant, 8, classes=10, width=0.0625, group_size=8, stem="small")).training_flops
    for variant in ("F0", "F1")
)


def study(budgets: str, *more: str, batch_size: int = 10, training: str = "") -> Study:
    """F0 and F1 at a size that costs little, on 8 pixels."""
    text = f"""
name: mini
data: {{source: digits, image_size: 8}}
model: {{variants: [F0, F1], width: 0.0625, group_size: 8, stem: small}}
budgets: {budgets}
training: {{batch_size: {batch_size}{training}}}
"""
    return read_study(text + "\n".join(more), source="mini.yaml")


def opened(*args: str, **kwargs: object) -> tuple[list[Budget], list[str]]:
    return open_budgets(study(*args, **kwargs), EXAMPLES, 10)  # type: ignore[arg-type]


def flops_for(epochs: float) -> str:
    """The budget that buys so many epochs of F0, as a study file has it."""
    return f"[{epochs * F0 * EXAMPLES!r} FLOPs]"


def refusal(*args: str, **kwargs: object) -> str:
    with pytest.raises(StudyError) as caught:
        opened(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("mini.yaml: budgets[")
    return message


def test_a_budget_buys_the_epochs_its_flops_pay_for() -> None:
    budgets, warnings = opened(flops_for(2))

    (budget,) = budgets
    cell = budget.cell("F0")
    assert cell.epochs == pytest.approx(2)
    assert cell.steps == 200
    assert cell.flops_per_image == F0
    assert cell.flops == pytest.approx(budget.flops)
    assert budget.cell("F1").epochs == pytest.approx(2 * F0 / F1)
    assert warnings == []


def test_a_cell_knows_the_parameters_of_its_model() -> None:
    size = costs(ModelSize("F1", 8, classes=10, width=0.0625, group_size=8, stem="small"))
    assert opened(flops_for(2))[0][0].cell("F1").parameters == size.parameters


def test_steps_are_whole_and_their_flops_are_told() -> None:
    ((budget,), _) = opened(flops_for(0.5), "epochs: {min: 0.1, max: 1}", batch_size=27)
    cell = budget.cell("F0")
    assert cell.epochs == pytest.approx(0.5)
    assert cell.steps == 19
    assert cell.flops == 19 * 27 * F0


@pytest.mark.parametrize(
    ("bought", "snapped"), [(0.9, 1), (1.4, 1), (1.42, 2), (2.8, 2), (2.83, 4), (5.6, 4), (0.71, 1)]
)
def test_epochs_are_snapped_to_the_nearest_entry_of_a_grid_on_the_log_axis(bought: float, snapped: float) -> None:
    ((budget,), _) = opened(flops_for(bought), "epochs: {grid: [1, 2, 4]}")
    cell = budget.cell("F0")
    assert cell.epochs == snapped
    assert cell.flops == pytest.approx(snapped * F0 * EXAMPLES)
    assert budget.flops == pytest.approx(bought * F0 * EXAMPLES)


def test_a_grid_reaches_half_a_step_beyond_its_ends() -> None:
    def variants(bought: float) -> list[str]:
        ((budget,), _) = opened(flops_for(bought), "epochs: {grid: [1, 2, 4]}")
        return [cell.variant for cell in budget.cells]

    assert "within the grid of 1 to 4 epochs" in refusal(flops_for(0.70), "epochs: {grid: [1, 2, 4]}")
    assert variants(0.71) == ["F0"]
    assert variants(5.65) == ["F0", "F1"]
    assert variants(5.7) == ["F1"]


def test_a_lone_entry_of_a_grid_reaches_half_an_octave() -> None:
    ((budget,), _) = opened(flops_for(1.4), "epochs: {grid: [1]}")
    assert budget.cell("F0").epochs == 1
    assert [cell.variant for cell in opened(flops_for(1.42), "epochs: {grid: [1]}")[0][0].cells] == ["F1"]


def test_a_cell_outside_the_range_is_left_out_with_a_warning() -> None:
    ((budget,), warnings) = opened(flops_for(2), "epochs: {min: 1.5, max: 8}")
    assert [cell.variant for cell in budget.cells] == ["F0"]
    with pytest.raises(KeyError):
        budget.cell("F1")
    (warning,) = warnings
    assert warning.startswith(f"budget {budget.label}: left out F1 (")
    assert "outside the range of 1.5 to 8 epochs" in warning


def test_the_ends_of_a_range_belong_to_it() -> None:
    ((budget,), _) = opened(flops_for(2), "epochs: {min: 0.5, max: 2}")
    assert budget.cell("F0").epochs == pytest.approx(2)


def test_a_budget_that_buys_nothing_is_refused_and_says_what_would_do() -> None:
    message = refusal("[10 FLOPs]")
    assert "10 FLOPs buys no variant within the range of 0.25 to 8 epochs" in message
    assert f"about {0.25 * F0 * EXAMPLES:.2g} to {8 * F1 * EXAMPLES:.2g} FLOPs" in message
    assert "buys no variant" in refusal("[1e50 FLOPs]")


def test_a_batch_too_large_for_any_budget_is_refused_by_name() -> None:
    message = refusal(flops_for(2), batch_size=100_000)
    assert "none could: training.batch_size 100000 is more than twice the images of 8 epochs; lower it" in message


def test_a_budget_of_less_than_half_a_step_is_told_the_least_that_buys_one() -> None:
    message = refusal(flops_for(1), batch_size=4000)
    assert f"allowed: about {2000 * F0:.2g} to {8 * F1 * EXAMPLES:.2g} FLOPs" in message


def test_every_budget_that_buys_nothing_is_told() -> None:
    with pytest.raises(StudyError) as caught:
        opened("[1 FLOPs, 2 FLOPs]")
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == ["budgets[0]", "budgets[1]"]


# ---------------------------------------------------------------- core-hours


def test_core_hours_are_converted_by_the_studys_rate() -> None:
    rate = F0 * EXAMPLES * 2 / 3600
    ((budget,), _) = opened("[1 core-hours]", f"compute: {{flops_per_core_second: {rate!r}}}")
    assert budget.label == "1 core-hours"
    assert budget.cell("F0").epochs == pytest.approx(2)


def test_core_hours_without_a_rate_are_refused() -> None:
    message = refusal("[1 core-hours]")
    assert "1 core-hours given" in message
    assert "set compute.flops_per_core_second" in message


def test_core_hours_of_a_known_device_are_marked_as_an_estimate() -> None:
    hours = F0 * EXAMPLES / (3600 * 0.29 * 137.5e12)
    ((budget,), warnings) = opened(f"[{hours:.12f} TPU-v4 core-hours]")
    assert budget.cell("F0").epochs == pytest.approx(1, rel=1e-3)
    (warning,) = warnings
    assert warning == "TPU-v4 core-hours are converted at 3.99e+13 FLOPs per core-second, which is an estimate"


def test_budgets_must_rise_after_conversion() -> None:
    with pytest.raises(StudyError, match=r"^mini.yaml: budgets\[1\]: 1 core-hours given after .* rising budgets"):
        study(f"[{F0 * 2000} FLOPs, 1 core-hours]", "compute: {flops_per_core_second: 1}")


def test_budgets_must_rise_by_the_rate_that_they_are_converted_by() -> None:
    """Which need not be the known one: what was compiled may be slower."""
    mixed = study("[1.2e17 FLOPs, 1 TPU-v4 core-hours]")
    assert amounts_in_flops(mixed) == [1.2e17, pytest.approx(1.436e17, rel=1e-3)]
    for slower in (2.5e13, 1.2e17 / 3600):
        with pytest.raises(StudyError, match=r"^mini.yaml: budgets\[1\]: 1 TPU-v4 core-hours is .* rising budgets"):
            amounts_in_flops(mixed, {"TPU-v4": slower})


# ---------------------------------------------------------------- trials


@pytest.mark.parametrize(
    ("search", "trials"),
    [
        ("sampler: tpe", 4),
        ("sampler: tpe, trials: 7", 7),
        ("sampler: grid", 10),
        ("sampler: grid, trials: 7", 7),
        ("sampler: random, trials: 99", 10),
    ],
)
def test_trials_of_a_budget(search: str, trials: int) -> None:
    ((budget,), _) = opened(flops_for(2), f"search: {{{search}}}")
    assert budget.trials == trials


def test_more_trials_than_combinations_are_warned_of() -> None:
    (_, (warning,)) = opened(flops_for(2), "search: {trials: 99}")
    assert "99 trials asked for" in warning
    assert "10 combinations" in warning


def test_a_part_of_the_grid_is_warned_of() -> None:
    (_, (warning,)) = opened(flops_for(2), "search: {sampler: grid, trials: 7}")
    assert "7 trials cover a part of the grid of 10" in warning


# ---------------------------------------------------------------- what makes no sense


def test_few_steps_are_warned_of() -> None:
    (_, (warning,)) = opened(flops_for(2), batch_size=250)
    assert "fewer than 10 steps: F0 (8), F1 (4)" in warning


def test_less_than_half_a_step_is_no_cell() -> None:
    ((budget,), warnings) = opened(flops_for(0.5), "epochs: {min: 0.1, max: 1}", batch_size=900)
    assert [(cell.variant, cell.steps) for cell in budget.cells] == [("F0", 1)]
    assert "F1 (0.266 epochs are less than half a step)" in warnings[0]


def test_a_batch_larger_than_the_data_set_is_warned_of_once() -> None:
    (_, warnings) = opened(f"[{F0 * 8000} FLOPs, {F0 * 16000} FLOPs]", "epochs: {max: 16}", batch_size=1001)
    assert len([line for line in warnings if "larger than the 1000 training examples" in line]) == 1


@pytest.mark.parametrize(("warmup", "steps"), [("{epochs: 5}", 200), ("{steps: 200}", 200), ("{steps: 9}", 9)])
def test_a_warm_up_never_exceeds_the_trial(warmup: str, steps: int) -> None:
    ((budget,), warnings) = opened(flops_for(2), training=f", warmup: {warmup}")
    assert budget.cell("F0").warmup_steps == steps
    assert any("the warm-up takes all steps: F0 (200)" in line for line in warnings) == (steps == 200)


def test_the_same_training_in_two_budgets_is_warned_of() -> None:
    (_, warnings) = opened(f"[{F0 * 2000} FLOPs, {F0 * 2200} FLOPs]", "epochs: {grid: [1, 2, 4]}")
    assert "trained alike in a smaller budget: F0 (200 steps), F1 (100 steps)" in warnings[0]


# ---------------------------------------------------------------- labels as paths


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("2e13 FLOPs", "2e13-FLOPs"),
        ("400 core-hours", "400-core-hours"),
        ("400 TPU-v4 core-hours", "400-TPU-v4-core-hours"),
        ("2.5e+4 FLOPs", "2.5e4-FLOPs"),
        (".5 PFLOPs", "0.5-PFLOPs"),
        ("../x y", "x-y"),
    ],
)
def test_a_label_is_made_fit_for_a_path(label: str, expected: str) -> None:
    assert slug(label) == expected
