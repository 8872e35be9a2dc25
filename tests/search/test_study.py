"""A study file is read into one frozen object, or refused with a line for each problem."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml

from search.budgets import Cell, open_budgets
from search.complaints import field_at, fields_of
from search.sections import LearningRate, Warmup
from search.study import Study, StudyError, load_study, read_study
from trainables.config import TrialConfig

STUDIES = Path(__file__).resolve().parents[2] / "studies"
NAME = "name: mini\n"
DATA = "data: {source: digits, image_size: 32}\n"
BUDGETS = "budgets: [1e10 FLOPs, 20 GFLOPs]\n"
MINIMAL = NAME + DATA + BUDGETS


def complaint(text: str) -> str:
    """What reading `text` complains of, in one line, which every complaint must be."""
    with pytest.raises(StudyError) as caught:
        read_study(text, source="mini.yaml")
    message = str(caught.value)
    assert "\n" not in message, message
    assert message.startswith("mini.yaml:"), message
    assert len(message) < 400, message
    return message


def test_a_minimal_study_has_the_papers_values() -> None:
    study = read_study(NAME + "data: {source: digits}\nbudgets: [400 core-hours]")

    assert study.data.image_size == 224
    assert study.model.variants == ("F0", "F1", "F3", "F3+", "F7", "F7+")
    assert (study.model.width, study.model.group_size, study.model.stem) == (1.0, 128, "paper")
    assert (study.epochs.min, study.epochs.max) == (0.25, 8)
    training = study.training
    assert (training.batch_size, training.momentum, training.weight_decay) == (4096, 0.9, 2e-5)
    assert (training.agc_clip, training.agc_eps) == (0.01, 1e-3)
    assert (training.label_smoothing, training.ema_decay, training.precision) == (0.1, None, "bfloat16")
    assert study.learning_rate.factor == 2


def test_the_default_learning_rates_hold_the_papers_best_ones_with_neighbours_on_both_sides() -> None:
    assert read_study(MINIMAL).learning_rates == (0.2, 0.4, 0.8, 1.6, 3.2)


def test_every_field_is_documented() -> None:
    undocumented = [path for path in fields_of(Study) if (at := field_at(Study, path)) is None or not at.description]
    assert undocumented == []


@pytest.mark.parametrize("name", ["digits", "imagefolder", "jft-paper"])
def test_the_studies_of_this_repository_can_be_read(name: str) -> None:
    assert load_study(STUDIES / f"{name}.yaml").name == name


def test_a_study_is_frozen() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        read_study(MINIMAL).training.momentum = 0.5


# ---------------------------------------------------------------- what is refused, field by field


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("training: {momentun: 0.9}", ["training.momentun", "unknown field", "did you mean momentum?", "batch_size"]),
        ("budgetz: [1 FLOPs]", ["budgetz", "did you mean budgets?"]),
        ("batch_size: 64", ["batch_size", "64 given", "move it to training.batch_size"]),
        ("colour: red", ["colour", "unknown field", "remove it", "learning_rate"]),
        ("Training: {}", ["Training", "did you mean training?"]),
        ("3: red", ["key is not text", "allowed: name"]),
        ("training: {momentum: 1.5}", ["training.momentum: 1.5 given", "less than 1", "0.9"]),
        ("training: {momentum: high}", ['training.momentum: "high" given', "a number"]),
        ("training: {batch_size: 0}", ["training.batch_size: 0 given", "1 or more", "4096"]),
        ("training: {batch_size: 2.5}", ["training.batch_size: 2.5 given", "whole number"]),
        ("training: {batch_size: true}", ["training.batch_size: true given", "not true or false"]),
        ("training: {agc_clip: .nan}", ["training.agc_clip", "neither infinite nor NaN"]),
        ("training: {agc_clip: .inf}", ["training.agc_clip", "neither infinite nor NaN"]),
        ("training: {precision: fp8}", ['training.precision: "fp8" given', "'float32' or 'bfloat16'"]),
        ("training: 3", ["training: 3 given", "section of fields (batch_size", "indent"]),
        ("training:\n  - batch_size: 3", ["training: [", "section of fields"]),
        ("training: {warmup: {}}", ["training.warmup", "nothing given", "exactly one of epochs, steps, fraction"]),
        ("training: {warmup: {steps: 1, epochs: 2}}", ["training.warmup", "epochs and steps given", "exactly one"]),
        ("training: {warmup: {step: 3}}", ["training.warmup.step", "did you mean steps?"]),
        ("training: {warmup: {fraction: 1}}", ["training.warmup.fraction: 1 given", "less than 1"]),
        ("training: {checkpoint: {keep: 0}}", ["training.checkpoint.keep: 0 given", "1 or more"]),
        ("training: {seed: -1}", ["training.seed: -1 given", "0 or more"]),
        ("model: {family: vit}", ["model.family", "'vit'", "nfnet"]),
        ("model: {variants: [F0, F9]}", ["model.variants[1]", "'F9'", "F7+"]),
        ("model: {variants: [f3+]}", ["model.variants[0]", "did you mean 'F3+'?"]),
        ("model: {variants: [F0, F1, F0]}", ["model.variants[2]", "given twice"]),
        ("model: {variants: []}", ["model.variants: [] given", "1 entry or more"]),
        ("model: {variants: F0}", ['model.variants: "F0" given', "a list"]),
        ("model: {width: 0.01}", ["model: ", "group_size", "width"]),
        ("model: {width: 0}", ["model.width: 0 given", "more than 0"]),
        ("epochs: [1, 2]", ["epochs: [1, 2] given", "section of fields (min, max, grid)"]),
        ("epochs: {min: 4, max: 2}", ["epochs.max: 2 given", "min (4) or more"]),
        ("epochs: {min: 1, grid: [1]}", ["epochs.grid", "a range or a grid"]),
        ("epochs: {grid: [2, 1]}", ["epochs.grid: [2.0, 1.0] given", "rising"]),
        ("epochs: {grid: [0, 1]}", ["epochs.grid[0]: 0 given", "1e-06 or more"]),
        ("epochs: {grid: []}", ["epochs.grid: [] given", "1 entry or more"]),
        ("learning_rate: {base: 1, min: 3, max: 3.1}", ["learning_rate", "min 3 and max 3.1 given", "1 x 2^k"]),
        ("learning_rate: {factor: 1}", ["learning_rate.factor: 1 given", "more than 1"]),
        ("learning_rate: {factor: 1.0001}", ["learning_rate", "factor 1.0001", "100 or fewer"]),
        (
            "search: {seeds: 2}\ntraining: {seed: 4294967295}",
            ["search.seeds: 2 given", "lower training.seed to 4294967294"],
        ),
        ("search: {seeds: 0}", ["search.seeds: 0 given", "1 or more"]),
        ("search: {doubt: 0.7}", ["search.doubt: 0.7 given", "0.5"]),
        ("search: {second_objective: latency}", ['search.second_objective: "latency" given', "'core_hours'"]),
        ("search: {sampler: TPE}", ['search.sampler: "TPE" given', "'tpe', 'gp', 'random' or 'grid'"]),
        ("search: {trials: 0}", ["search.trials: 0 given", "1 or more"]),
        ("compute: {device: gpu}", ['compute.device: "gpu" given', "'auto', 'cpu', 'cuda', 'tpu' or 'xla-cpu'"]),
        ("compute: {workers_per_slice: 2, cores_per_slice: 1}", ["compute.cores_per_slice: 1 given", "2", "raise it"]),
        ("compute: {flops_per_core_second: 0}", ["compute.flops_per_core_second: 0 given", "1 or more"]),
        ("tracking: {uri: ''}", ['tracking.uri: "" given', "text that is not empty"]),
        ("storage: 3", ["storage: 3 given", "text", '"runs"']),
        ("storage:", ["storage: null given", "text"]),
        ("storage: s3:/bucket/runs", ['storage: "s3:/bucket/runs" given', "write s3://bucket/runs, or ./s3:/bucket"]),
        ("storage: gs:bucket", ['storage: "gs:bucket" given', "an address with ://", "write gs://bucket"]),
        ("storage: ' '", ['storage: " " given', "such as runs"]),
        ("learning_rate: {base: 1e308}", ["learning_rate.base: 1e+308 given", "10000 or less"]),
        ("learning_rate: {base: 1e-323}", ["learning_rate.base: 1e-323 given", "1e-08 or more"]),
        ("learning_rate: {max: 1e308}", ["learning_rate.max: 1e+308 given", "10000 or less"]),
        ("learning_rate: {factor: 1e308}", ["learning_rate.factor: 1e+308 given", "10000 or less"]),
        ("training: {batch_size: 99999999}", ["training.batch_size: 99999999 given", "1048576 or less"]),
        ("training: {eval_batch_size: 99999999}", ["training.eval_batch_size: 99999999 given", "1048576 or less"]),
        ("training: {weight_decay: 1e300}", ["training.weight_decay: 1e+300 given", "1 or less"]),
        ("training: {warmup: {epochs: 1e308}}", ["training.warmup.epochs: 1e+308 given", "1000000 or less"]),
        ("training: {divergence: {factor: 1}}", ["training.divergence.factor: 1 given", "more than 1"]),
    ],
)
def test_a_wrong_field_is_named_with_what_was_given_and_what_is_allowed(field: str, expected: list[str]) -> None:
    message = complaint(MINIMAL + field)
    assert [part for part in expected if part not in message] == [], message


PLANNED = """
name: mini
data: {source: digits, image_size: 8}
model: {variants: [F0], width: 0.0625, group_size: 8, stem: small}
budgets: [2e10 FLOPs, 0.01 core-hours]
training: {batch_size: 16}
compute: {flops_per_core_second: 1e9}
"""


def refusal(document: dict[str, Any]) -> str:
    """What reading and planning a study complains of; empty where nothing is wrong."""
    try:
        open_budgets(read_study(yaml.safe_dump(document), source="mini.yaml"), 1000, 10)
    except StudyError as error:
        return str(error)
    return ""


def number_fields() -> list[str]:
    """Every field of a study that takes a number."""
    wanted = r"mini\.yaml: [\w.]+: .* allowed: a (whole )?number"
    paths = [path for path in fields_of(Study) if re.match(wanted, refusal(nested(path, "no number")))]
    return [".".join(path) for path in paths]


def nested(path: Sequence[str], value: object) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(PLANNED)
    inner = document
    for part in path[:-1]:
        inner = inner.setdefault(part, {})
    inner[path[-1]] = value
    return document


EXTREMES = (1e308, 1e-323, 1e19, 1e-19, 10**400, 10**18, -1, 0, 1)


@pytest.mark.parametrize("field", number_fields())
def test_extreme_numbers_are_refused_in_lines_or_can_be_planned(field: str) -> None:
    for number in EXTREMES:
        lines = refusal(nested(field.split("."), number)).splitlines()
        assert [line for line in lines if not line.startswith("mini.yaml: ") or len(line) > 400] == []


def test_number_fields_are_found() -> None:
    assert refusal(yaml.safe_load(PLANNED)) == ""
    found = number_fields()
    assert {"training.batch_size", "learning_rate.base", "training.warmup.epochs", "compute.slices"} <= set(found)
    assert len(found) > 35


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("data: {source: mnist}", ['data.source: "mnist" given', "'digits', 'folder' or 'shards'"]),
        ("data: {source: folder}", ["data.path: missing", "source folder"]),
        ("data: {source: shards}", ["data.path: missing", "source shards", "dataset.json"]),
        ("data: {source: records, path: x}", ['data.source: "records" given', "ArrayRecord", "set source: shards"]),
        ("data: {source: folder, path: 'gs://b/x'}", ["data.path: 'gs://b/x' given", "this machine's disk"]),
        (
            "data: {source: digits, declared: {train_images: 1, heldout_images: 1, classes: 2}}",
            ["data.declared: given with source digits", "source shards; remove it"],
        ),
        (
            "data: {source: shards, path: x, declared: {train_images: 1, heldout_images: 1, classes: 1}}",
            ["data.declared.classes: 1 given", "2 or more"],
        ),
        ("data: {source: digits, path: x}", ["data.path: 'x' given", "source: folder"]),
        ("data: {source: folder, path: 3}", ["data.path: 3 given", "text"]),
        ("data: {source: digits, held_out_fraction: 1}", ["data.held_out_fraction: 1 given", "less than 1"]),
        ("data: {source: digits, augment: off}", ['data.augment: "off" given', "'none', 'shift' or 'crop'"]),
        ("data: {source: digits, flip: maybe}", ['data.flip: "maybe" given', "true or false"]),
        ("data: {image_size: 32}", ["data.source: missing", "add it"]),
        ("data: {source: digits, image_size: 16}", ["model: image_size 16", "paper", "32 pixels or more"]),
        ("data:", ["data: null given", "section of fields (source"]),
        ("", ["data: missing", "source"]),
    ],
)
def test_wrong_data_is_refused(data: str, expected: list[str]) -> None:
    message = complaint(f"{NAME}{data}\n{BUDGETS}")
    assert [part for part in expected if part not in message] == [], message


@pytest.mark.parametrize(
    ("budgets", "expected"),
    [
        ("[]", ["budgets: [] given", "1 entry or more"]),
        ("400 core-hours", ['budgets: "400 core-hours" given', "a list"]),
        ("[1e3]", ["budgets[0]: 1000.0 given", 'add the unit: "1000 FLOPs"']),
        ("['1e3']", ['budgets[0]: "1e3" given', "add the unit"]),
        ("[400 apples]", ['budgets[0]: "400 apples" given', "2e15 FLOPs", "core-hours"]),
        ("[FLOPs]", ['budgets[0]: "FLOPs" given', "an amount and a unit"]),
        ("[-1 FLOPs]", ['budgets[0]: "-1 FLOPs" given', "plain number"]),
        ("[0 FLOPs]", ['budgets[0]: "0 FLOPs" given', "above 0"]),
        ("[1e999 FLOPs]", ['budgets[0]: "1e999 FLOPs" given', "up to 1e+60"]),
        ("[400 H100 core-hours]", ["budgets[0]", "TPU-v4", "compute.flops_per_core_second"]),
        ("[1 FLOPs, null]", ["budgets[1]: null given", "an amount and a unit"]),
        ("[{a: b}]", ['budgets[0]: {"a": "b"} given', "an amount and a unit"]),
        ("[2 FLOPs, 1 FLOPs]", ["budgets[1]: 1 FLOPs given after 2 FLOPs", "rising"]),
        ("[1e12 FLOPs, 1.0000001e12 FLOPs]", ["budgets[1]: 1.0000001e12 FLOPs given after 1e12 FLOPs", "none twice"]),
        ("[1 TFLOPs, 1e12 FLOPs]", ["budgets[1]: 1e12 FLOPs given after 1 TFLOPs", "none twice"]),
        ("[1 TPU-v4 core-hours, 1e12 FLOPs]", ["budgets[1]: 1e12 FLOPs given after 1 TPU-v4 core-hours", "rising"]),
    ],
)
def test_wrong_budgets_are_refused(budgets: str, expected: list[str]) -> None:
    message = complaint(f"{NAME}{DATA}budgets: {budgets}")
    assert [part for part in expected if part not in message] == [], message


@pytest.mark.parametrize("name", ["''", "a b", "../up", ".hidden", "a/b", "3", "null", "x" * 65])
def test_a_name_that_is_no_folder_name_is_refused(name: str) -> None:
    assert complaint(f"name: {name}\n{DATA}{BUDGETS}").startswith("mini.yaml: name: ")


def test_each_problem_has_a_line_of_its_own() -> None:
    text = "name: a b\ndata: {source: mnist}\nbudgets: [1]\ntraining: {momentun: 1, batch_size: 0}"
    with pytest.raises(StudyError) as caught:
        read_study(text, source="mini.yaml")
    fields = [line.split(": ")[1] for line in str(caught.value).splitlines()]
    assert sorted(fields) == ["budgets[0]", "data.source", "name", "training.batch_size", "training.momentun"]


def test_problems_between_sections_are_told_together() -> None:
    text = MINIMAL + "compute: {workers_per_slice: 3}\nmodel: {variants: [F9]}\nlearning_rate: {min: 9, max: 9}"
    with pytest.raises(StudyError) as caught:
        read_study(text, source="mini.yaml")
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        "model.variants[0]",
        "training.batch_size",
        "training.eval_batch_size",
        "learning_rate",
    ]
    assert "4096 given" in lines[1]
    assert "use 4095" in lines[1]


# ---------------------------------------------------------------- the file itself


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("3", "3 given; allowed: fields (name"),
        ("- name: mini", "given; allowed: fields (name"),
        ("name: mini\nname: other\n", "2:1: key 'name' is given twice, first on line 1"),
        ("training:\n  seed: 1\n  seed: 2\n", "3:3: key 'seed' is given twice, first on line 2"),
        ("name: [", "1:8: "),
        ("name: a\n  b: c\n", "2:4: "),
        ("\tname: a\n", "1:1: "),
        ("name: !!python/object:os.system x\n", "1:7: "),
        ("name: a\n---\nname: b\n", "2:1: "),
        ("name: a\nb: \x07\n", "2:4: character U+0007 is not allowed"),
        ("? [a]\n: b\n", "1:3: a key must be a plain word"),
        ("name: *nowhere\n", "1:7: "),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_text_that_is_no_study_is_refused_with_its_place(text: str, expected: str) -> None:
    assert expected in complaint(text)


def test_a_list_within_itself_is_refused() -> None:
    assert "4:11: found unconstructable recursive node" in complaint(MINIMAL + "training: &a [*a]")


@pytest.mark.parametrize("value", ["2e-5", "2.0e-5", "0.00002", "'2e-5'", "+2e-5"])
def test_numbers_are_read_as_people_write_them(value: str) -> None:
    assert read_study(f"{MINIMAL}training: {{weight_decay: {value}}}").training.weight_decay == 2e-5


@pytest.mark.parametrize(("value", "flip"), [("true", True), ("yes", True), ("no", False), ("off", False)])
def test_switches_are_read_as_people_write_them(value: str, flip: bool) -> None:
    text = f"{NAME}data: {{source: digits, image_size: 32, flip: {value}}}\n{BUDGETS}"
    assert read_study(text).data.flip is flip


def test_words_with_a_hidden_meaning_in_older_yaml_are_just_words() -> None:
    study = read_study(f"name: off\ndata: {{source: folder, path: no, image_size: 32}}\n{BUDGETS}")
    assert (study.name, study.data.path) == ("off", "no")


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    text = MINIMAL + "training: {<<: {batch_size: 64, seed: 3}, batch_size: 128}"
    training = read_study(text).training
    assert (training.batch_size, training.seed) == (128, 3)


def test_a_missing_file_suggests_the_one_beside_it(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text(MINIMAL)
    with pytest.raises(StudyError, match=r"digit\.yaml: no such file; did you mean .*digits\.yaml\?$"):
        load_study(tmp_path / "digit.yaml")
    with pytest.raises(StudyError, match="no such file; give the path of a study file"):
        load_study(tmp_path / "no-folder" / "x.yaml")


def test_a_folder_or_a_file_of_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="is a folder"):
        load_study(tmp_path)
    (tmp_path / "image.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(StudyError, match="byte 6 is not UTF-8"):
        load_study(tmp_path / "image.yaml")


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "mini.yaml").write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    study = load_study(tmp_path / "mini.yaml")
    assert (study.name, study.source) == ("mini", str(tmp_path / "mini.yaml"))


# ---------------------------------------------------------------- what a study answers


def rates(**fields: float) -> tuple[float, ...]:
    return LearningRate(**fields).rates(256)


def test_learning_rates_are_base_times_powers_of_the_factor_within_the_bounds() -> None:
    assert rates(base=0.8, min=0.1, max=1.6) == (0.1, 0.2, 0.4, 0.8, 1.6)
    assert rates(base=0.8, min=0.11, max=1.59) == (0.2, 0.4, 0.8)
    assert rates(base=1, factor=10, min=0.001, max=1) == (0.001, 0.01, 0.1, 1.0)
    assert rates(base=0.1, factor=3, min=0.3, max=0.9) == (0.3, 0.9)
    assert rates(base=0.5, min=0.5, max=0.5) == (0.5,)


def test_the_base_rate_follows_the_batch_size() -> None:
    assert 0.1 in LearningRate().rates(256)
    assert max(LearningRate().rates(1024)) == 0.8


@pytest.mark.parametrize(
    ("warmup", "steps"),
    [(Warmup(steps=7), 7), (Warmup(epochs=2), 200), (Warmup(fraction=0.05), 50), (Warmup(steps=0), 0)],
)
def test_a_warm_up_is_converted_to_steps(warmup: Warmup, steps: int) -> None:
    assert warmup.in_steps(steps=1000, batch_size=10, train_examples=1000) == steps


CELL = Cell("F1", epochs=2.0, steps=90, warmup_steps=4, flops_per_image=1e7, parameters=10, flops=1e10)


def trial_config(study: Study) -> TrialConfig:
    return study.trial_config(trial_id="b-000", cell=CELL, learning_rate=0.4, seed=3, classes=10, folder="s3://b/t")


def test_a_trial_config_says_all_that_the_study_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    study = read_study(
        f"""
        name: mini
        data: {{source: folder, path: images, image_size: 32, augment: shift, decode_workers: 2}}
        {BUDGETS.strip()}
        model: {{variants: [F1], width: 0.5, group_size: 64, stem: small, drop_rate: 0.1, drop_path_rate: 0.2}}
        training:
          batch_size: 64
          momentum: 0.8
          agc_clip: null
          ema_decay: 0.99
          precision: float32
          eval_batch_size: 32
          log_points: 7
          divergence: {{factor: 3, patience: 9}}
          checkpoint: {{every_s: null, every_steps: 5, keep: 1}}
        """
    )
    config = trial_config(study)
    assert (config.trial_id, config.seed, config.steps, config.warmup_steps) == ("b-000", 3, 90, 4)
    assert config.flops_per_image == 1e7
    assert (config.batch_size, config.eval_batch_size, config.precision, config.log_points) == (64, 32, "float32", 7)
    model = config.model
    assert (model.family, model.variant, model.classes, model.image_size) == ("nfnet", "F1", 10, 32)
    assert (model.width, model.group_size, model.stem) == (0.5, 64, "small")
    assert (model.drop_rate, model.drop_path_rate) == (0.1, 0.2)
    assert config.data.path == str(tmp_path / "images")
    assert (config.data.augment, config.data.decode_workers) == ("shift", 2)
    optimiser = config.optimiser
    assert (optimiser.learning_rate, optimiser.momentum, optimiser.agc_clip, optimiser.ema_decay) == (
        0.4,
        0.8,
        None,
        0.99,
    )
    assert (config.divergence.factor, config.divergence.patience) == (3, 9)
    checkpoint = config.checkpoint
    assert (checkpoint.folder, checkpoint.every_s, checkpoint.every_steps, checkpoint.keep) == ("s3://b/t", None, 5, 1)
    assert TrialConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_storage_is_relative_to_the_working_directory_unless_it_has_a_scheme(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert read_study(MINIMAL).storage_url == str(tmp_path / "runs")
    assert read_study(MINIMAL + "storage: ~/runs").storage_url == "/home/me/runs"
    assert read_study(MINIMAL + "storage: gs://bucket/runs").storage_url == "gs://bucket/runs"
    assert read_study(MINIMAL + "storage: file:///runs").storage_url == "/runs"
    assert read_study(MINIMAL + "storage: ./s3:/runs").storage_url == str(tmp_path / "s3:" / "runs")


# ---------------------------------------------------------------- the identity of a study


def test_an_identity_survives_json() -> None:
    identity = read_study(MINIMAL).identity()
    assert json.loads(json.dumps(identity)) == identity
    assert identity["training.warmup.fraction"] == 0.05
    grid = read_study(MINIMAL + "epochs: {grid: [1, 2]}").identity()
    assert json.loads(json.dumps(grid))["epochs.grid"] == [1.0, 2.0]


def variations(*fields: str) -> Iterator[str]:
    yield from (MINIMAL + field for field in fields)


@pytest.mark.parametrize(
    "changed",
    [
        *variations("training: {momentum: 0.8}", "training: {seed: 1}", "training: {warmup: {steps: 3}}"),
        *variations("model: {width: 2}", "learning_rate: {base: 1}", "epochs: {grid: [1, 2]}"),
        MINIMAL.replace("image_size: 32", "image_size: 64"),
    ],
)
def test_what_results_depend_on_is_part_of_the_identity(changed: str) -> None:
    assert read_study(changed).identity() != read_study(MINIMAL).identity()


@pytest.mark.parametrize(
    "changed",
    [
        *variations("compute: {slices: 2}", "search: {trials: 9}", "tracking: {enabled: false}", "storage: elsewhere"),
        *variations("training: {checkpoint: {every_s: 5}}", "training: {log_points: 3}"),
        *variations("learning_rate: {max: 6.4}", "learning_rate: {base: 1.6}"),
        *variations("model: {variants: [F0]}", "epochs: {max: 9}", "epochs: {min: 0.1}"),
        MINIMAL.replace("image_size: 32", "image_size: 32, decode_workers: 2"),
        MINIMAL.replace("image_size: 32", "image_size: 32, bad_images: skip"),
        MINIMAL.replace("20 GFLOPs", "20 GFLOPs, 40 GFLOPs"),
    ],
)
def test_what_results_do_not_depend_on_may_change(changed: str) -> None:
    assert read_study(changed).identity() == read_study(MINIMAL).identity()


@pytest.mark.parametrize(
    ("published", "expected"),
    [
        ("[{variant: F9, epochs: 1, core_hours: 1, source: x}]", ["published[0].variant: unknown variant 'F9'", "F7"]),
        ("[{variant: F0, epochs: 1, core_hours: 0, source: x}]", ["published[0].core_hours: 0 given", "more than 0"]),
        (
            "[{variant: F0, epochs: 1, core_hours: 1, source: x, sourc: x}]",
            ["published[0].sourc: unknown", "mean source?"],
        ),
        ("[{variant: F0, epochs: 1, core_hours: 1}]", ["published[0].source: missing", "Where that is published"]),
        ("[400]", ["published[0]: 400 given", "section of fields (variant, epochs, core_hours, source)"]),
    ],
)
def test_wrong_entries_of_what_is_published_are_named(published: str, expected: list[str]) -> None:
    message = complaint(f"{MINIMAL}published: {published}")
    assert [part for part in expected if part not in message] == [], message


def test_what_is_published_may_change() -> None:
    more = "published: [{variant: F7, epochs: 1, core_hours: 1, source: x}]"
    assert read_study(MINIMAL + more).published[0].variant == "F7"
    assert read_study(MINIMAL + more).identity() == read_study(MINIMAL).identity()


def test_what_is_declared_of_the_data_is_no_part_of_the_identity_or_of_a_trial() -> None:
    shards = MINIMAL.replace("source: digits", "source: shards, path: here")
    declared = shards.replace("here", "here, declared: {train_images: 9, heldout_images: 9, classes: 9}")
    assert read_study(shards).identity() == read_study(declared).identity()
    assert read_study(shards).data_config() == read_study(declared).data_config()


def test_images_may_be_moved() -> None:
    here, there = (
        read_study(MINIMAL.replace("source: digits", f"source: folder, path: {path}")) for path in ("/here", "/there")
    )
    assert here.identity() == there.identity()
