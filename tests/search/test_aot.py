"""`convscale aot`: what is asked for, what is kept, what is printed; and once with the real compiler."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from rich.console import Console

from search import aot, cli
from search.aot import compiler_environment, programs_of, request
from search.aot_command import compile_study
from search.aot_table import FOOTER, as_json, render, render_top
from search.programs import Costs, Program, Programs, load_programs
from search.runs import SessionError
from search.study import Study, StudyError, load_study
from tests.search.programs import compiled
from trainables.aot.export import ExportedStep, Parameter
from trainables.aot.tpu_compiler import PROGRAM_FILE, TEXT_FILE

ROOT: Final = Path(__file__).resolve().parents[2]
STUDY: Final[dict[str, Any]] = {
    "name": "digits",
    "data": {"source": "digits", "image_size": 8},
    "model": {"variants": ["F0", "F1"], "width": 0.03125, "group_size": 4, "stem": "small"},
    "budgets": ["4e9 FLOPs"],
    "epochs": {"min": 0.01, "max": 100},
    "training": {"batch_size": 64, "precision": "bfloat16"},
    "compute": {"device": "cpu"},
    "storage": "runs",
}
TEXT: Final = """HloModule step

ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %double = f32[8,128]{1,0:T(8,128)} add(%x, %x), metadata={op_name="twice"}, backend_config={"c":{"estimated_cycles":"1050"}}
}
"""  # noqa: E501 - as the compiler writes it


@pytest.fixture
def study_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study's file in a folder of its own, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    return written(tmp_path)


def written(folder: Path, **changes: Any) -> Path:
    """A study's file; `changes` are its fields, or those of a section as `section__field`."""
    document = json.loads(json.dumps(STUDY))
    for name, value in changes.items():
        section, _, field = name.partition("__")
        if field:
            document[section][field] = value
        else:
            document[section] = value
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


class FakeCompiler:
    """Stands in for the processes that export and compile: counts them, and answers as they would."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.hlo = b"program"
        self.error: str | None = None
        self.status = 0
        self.exported: list[str] = []
        self.compiled: list[str] = []
        self.told: list[str] = []
        site = folder / "lib" / "python3.11" / "site-packages"
        for name in ("jax", "libtpu"):
            about = site / f"{name}-1.0.dist-info"
            about.mkdir(parents=True)
            (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        monkeypatch.setattr(aot, "_run", self.run)
        monkeypatch.setattr(aot, "source_digest", lambda: self.source)
        self.source = "as it is"

    def run(self, command: Sequence[str], environment: Any, log: Path, tell: Callable[[str], None]) -> int:
        folder = log.parent
        log.write_text("I began\nI cannot go on\n")
        if "trainables.aot.export" in command:
            variant = json.loads((folder / "config.json").read_text())["model"]["variant"]
            self.exported.append(variant)
            versions = {"torch": aot.metadata.version("torch"), "torch_xla": aot.metadata.version("torch_xla")}
            step = ExportedStep(self.hlo + variant.encode(), (Parameter("batch", "image"),), 64, False, 1.0, versions)
            step.write(folder)
            return 0
        self.compiled.append((folder / "step.hlo").read_bytes().decode())
        tell("1 minute")
        if self.status:
            return self.status
        memory = {"arguments": 2**20, "outputs": 0, "aliased": 0, "temporaries": 3 * 2**30, "code": 0, "total": 2**32}
        costs = {"": {"flops": 1.375e12, "bytes_accessed": 2e9}}
        answer = {"compile_s": 75.0, "error": self.error, "memory": memory, "costs": costs}
        (folder / PROGRAM_FILE).write_text(json.dumps(answer))
        (folder / TEXT_FILE).write_text(TEXT)
        return 0

    def programs(self, path: Path, *, keep: bool = False, **asked: Any) -> list[Program]:
        """The programs of a study's file."""
        wanted = request(path, topology="v4:2x2x1", **asked)
        return list(programs_of(wanted, tell=self.told.append, keep=keep, compiler=self.folder))


@pytest.fixture
def compiler(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> FakeCompiler:
    return FakeCompiler(tmp_path_factory.mktemp("compiler"), monkeypatch)


def a_program(study: Study, variant: str = "F0", **changes: Any) -> Program:
    """A program of a study as if it had been compiled for 8 cores; `changes` are its fields or its settings."""
    asked = request(Path(study.source), topology="v4:2x2x1", variants=[variant])
    settings = aot.settings_of(asked.configs[0], "v4:2x2x1", 8)
    fields = {field.name for field in dataclasses.fields(Program)}
    settings |= {name: value for name, value in changes.items() if name not in fields}
    memory = {"arguments": 1, "outputs": 0, "aliased": 0, "temporaries": 0, "code": 0, "total": 4 * 2**30}
    costs = Costs(flops=1.375e12, bytes_accessed=30e9, hbm_bytes=12_280_000_000, cycles=31_500_000, memory=memory)
    own = {name: value for name, value in changes.items() if name in fields}
    return compiled(study, variant, **{"settings": settings, "images": 512, "compiled_at": 0.0, "costs": costs, **own})


# ---- What is asked for ----------------------------------------------------------------------------------------------


def test_all_variants_are_compiled_for_all_cores_of_the_slice(study_file: Path) -> None:
    asked = request(study_file, topology="v4:2x2x1")
    assert [config.model.variant for config in asked.configs] == ["F0", "F1"]
    assert (asked.cores, asked.configs[0].batch_size, asked.images) == (8, 64, 1438)
    assert asked.configs[0].model.classes == 10
    assert asked.notes == ()


def test_variants_batch_cores_and_images_can_be_chosen(study_file: Path) -> None:
    asked = request(study_file, topology="v4:2x2x2", cores=1, variants=["F1", "F1"], batch_size=24, images=1000)
    assert [(config.model.variant, config.batch_size) for config in asked.configs] == [("F1", 24)]
    assert (asked.cores, asked.images) == (1, 1000)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--variant", "F3"], "unknown variant 'F3' (allowed: F0, F1)"),
        (["--variant", "f0"], "did you mean 'F0'?"),
        (["--topology", "v5e:2x2"], "topology 'v5e:2x2' given; allowed: v4:AxBxC"),
        (["--topology", "v4:3x3x3"], "use v4:4x4x4"),
        (["--cores", "4"], "--cores: 4 given; allowed: 1, or all 8 of v4:2x2x1"),
        (
            ["--batch-size", "60"],
            "batch of 60 images given; allowed: multiples of the 8 cores of v4:2x2x1; use 56 or 64",
        ),
        (["--batch-size", "4"], "use 8,"),
        (["--batch-size", "0"], "--batch-size: 0 given; allowed: 1 or more"),
        (["--images", "0"], "--images: 0 given; allowed: 1 or more"),
    ],
)
def test_bad_input_is_one_line_and_status_two(
    study_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["convscale", "aot", str(study_file), *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in error
    assert error.count("\n") == 1


def test_a_part_of_a_batch_must_be_split_evenly_too(tmp_path: Path) -> None:
    path = written(tmp_path, training__micro_batch_size=12)
    with pytest.raises(StudyError, match=r"part of a batch \(training.micro_batch_size\) on all hosts of 12 images"):
        request(path, topology="v4:2x2x1")


def test_without_the_data_classes_are_assumed_and_core_hours_left_out(tmp_path: Path) -> None:
    path = written(tmp_path, data={"source": "folder", "path": "not/here", "image_size": 8})
    asked = request(path, topology="v4:2x2x1")
    assert asked.images is None
    assert asked.configs[0].model.classes == 1000
    assert "1,000 classes are assumed" in asked.notes[0]
    assert "--images N" in asked.notes[1]
    assert request(path, topology="v4:2x2x1", images=10).notes == asked.notes[:1]


# ---- What is compiled, and what is kept -----------------------------------------------------------------------------


def test_a_second_call_neither_exports_nor_compiles(study_file: Path, compiler: FakeCompiler) -> None:
    first = compiler.programs(study_file)
    assert compiler.compiled == ["programF0", "programF1"]
    assert [program.compile_s for program in first] == [75.0, 75.0]
    assert compiler.told[0].startswith("F0: compiling for v4:2x2x1, ")
    assert "F0: compiling for v4:2x2x1, 1 minute so far" in compiler.told
    assert compiler.programs(study_file) == first
    assert (compiler.exported, len(compiler.compiled)) == (["F0", "F1"], 2)
    assert sorted(path.suffix for path in Path("runs/digits/aot").iterdir()) == [".json", ".json"]


def test_changed_code_is_exported_again_and_compiled_only_if_the_compiledchanged(
    study_file: Path, compiler: FakeCompiler
) -> None:
    compiler.programs(study_file, variants=["F0"])
    compiler.source = "another comment"
    compiler.programs(study_file, variants=["F0"])
    assert (len(compiler.exported), len(compiler.compiled)) == (2, 1)
    compiler.programs(study_file, variants=["F0"])
    assert len(compiler.exported) == 2
    compiler.source, compiler.hlo = "another step", b"faster"
    compiler.programs(study_file, variants=["F0"])
    assert compiler.compiled == ["programF0", "fasterF0"]
    assert len(Programs(load_study(study_file)).all()) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"training__batch_size": 128},
        {"training__precision": "float32"},
        {"training__ema_decay": 0.999},
        {"training__agc_clip": 0.02},
        {"model__width": 0.0625},
        {"model__drop_rate": 0.1},
    ],
)
def test_whatever_changes_the_compiledis_compiled_anew(
    study_file: Path, compiler: FakeCompiler, changes: dict[str, Any]
) -> None:
    compiler.programs(study_file, variants=["F0"])
    compiler.programs(written(study_file.parent, **changes), variants=["F0"])
    assert len(compiler.compiled) == 2


def test_what_does_not_enter_the_compiledis_not_compiled_anew(study_file: Path, compiler: FakeCompiler) -> None:
    compiler.programs(study_file, variants=["F0"])
    path = written(study_file.parent, learning_rate={"base": 0.1}, budgets=["8e9 FLOPs"], model__variants=["F0"])
    compiler.programs(path)
    assert len(compiler.compiled) == 1


def test_another_number_of_cores_is_another_program(study_file: Path, compiler: FakeCompiler) -> None:
    compiler.programs(study_file, variants=["F0"])
    (one,) = compiler.programs(study_file, variants=["F0"], cores=1)
    assert (len(compiler.compiled), one.cores) == (2, 1)
    assert any("v4:2x2x1, one core" in line for line in compiler.told)


def test_a_refusal_is_kept_with_the_compilers_words(study_file: Path, compiler: FakeCompiler) -> None:
    compiler.error = "RESOURCE_EXHAUSTED: it needs 48.00G of 15.25G"
    (program,) = compiler.programs(study_file, variants=["F0"])
    assert (program.error, program.costs) == (compiler.error, None)
    assert compiler.programs(study_file, variants=["F0"]) == [program]
    assert len(compiler.compiled) == 1


def test_a_compiler_that_dies_is_told_and_asked_again(study_file: Path, compiler: FakeCompiler) -> None:
    compiler.status = -9
    (program,) = compiler.programs(study_file, variants=["F0"])
    assert program.error == "the compiler's process was ended by signal 9: I cannot go on"
    compiler.status = 0
    assert compiler.programs(study_file, variants=["F0"])[0].error is None


def test_the_optimised_compiledis_kept_on_request(study_file: Path, compiler: FakeCompiler) -> None:
    compiler.programs(study_file, variants=["F0"])
    (program,) = compiler.programs(study_file, variants=["F0"], keep=True)
    assert len(compiler.compiled) == 2
    compiler.programs(study_file, variants=["F0"], keep=True)
    assert len(compiler.compiled) == 2
    assert Programs(load_study(study_file)).text(program, aot.TEXT_SUFFIX) == TEXT


def test_an_interrupt_ends_the_compilers_process(tmp_path: Path) -> None:
    program = (
        "import os, time; open('pid.new', 'w').write(str(os.getpid())); os.rename('pid.new', 'pid'); time.sleep(600)"
    )
    threads: list[threading.Timer] = []

    def interrupt_once_it_runs() -> None:
        if (tmp_path / "pid").exists():
            os.kill(os.getpid(), signal.SIGINT)
        else:
            threads.append(threading.Timer(0.05, interrupt_once_it_runs))
            threads[-1].start()

    interrupt_once_it_runs()
    command = [sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r}); {program}"]
    with pytest.raises(KeyboardInterrupt):
        aot._run(command, {}, tmp_path / "log", lambda line: None)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


# ---- The compiler's environment -------------------------------------------------------------------------------------


def test_the_environment_is_made_on_first_use(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("tpu-compiler:\n\tmkdir -p .venv-tpu && touch .venv-tpu/.installed\n")
    told: list[str] = []
    folder = compiler_environment(told.append, tmp_path)
    assert (folder / ".installed").exists()
    assert told[0].startswith("installing the TPU's compiler into .venv-tpu, on first use")
    assert compiler_environment(told.append, tmp_path) == folder
    assert len(told) == 2


def test_an_environment_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("tpu-compiler:\n\t@echo first >&2; echo ERROR: no network >&2; false\n")
    with pytest.raises(SessionError) as failed:
        compiler_environment(lambda line: None, tmp_path)
    assert str(failed.value) == (
        "the TPU's compiler could not be installed (ERROR: no network); mend that and run make tpu-compiler"
    )


# ---- What follows, and how it is shown ------------------------------------------------------------------------------


def test_the_roofline_is_the_longer_of_arithmetic_and_transfer(study_file: Path) -> None:
    program = a_program(load_study(study_file))
    assert program.arithmetic_s == pytest.approx(0.010)  # 1.375 TFLOP at 137.5 TFLOP/s
    assert program.transfer_s == pytest.approx(0.020)  # 12.28 GB at 614 GB/s
    assert (program.roofline_s, program.binds) == (pytest.approx(0.020), "HBM")
    assert program.expected_s == pytest.approx(0.030)  # 31.5 M cycles at 1.05 GHz
    assert program.images_per_s(0.020) == pytest.approx(512 / 8 / 0.020)
    assert program.core_hours(3600 * 3200, 0.020) == pytest.approx(1.0)
    assert program.costs is not None
    costs = dataclasses.replace(program.costs, flops=1.375e13, cycles=0)
    faster = dataclasses.replace(program, costs=costs)
    assert (faster.roofline_s, faster.binds, faster.expected_s) == (pytest.approx(0.1), "FLOPs", pytest.approx(0.1))


def test_the_table_fits_a_terminal_and_marks_every_figure_as_an_estimate(study_file: Path) -> None:
    study = load_study(study_file)
    asked = request(study_file, topology="v4:2x2x1")
    refused = a_program(study, "F1", error="RESOURCE_EXHAUSTED: it needs 48.00G", costs=None)
    console = Console(width=80, record=True, file=io.StringIO())
    render(asked, [a_program(study), refused], console)
    text = console.export_text()
    assert "…" not in text
    assert "v4:2x2x1, 8 cores (v4-8); batch 64, 8 px, bfloat16" in " ".join(text.split())
    rows = [line.split() for line in text.splitlines() if line.startswith("F0")]
    assert rows[0] == ["F0", "yes", "1", "min", "15", "s", "4.00", "GiB", "25%", "1.38e12", "12.3", "GB", "30.0", "GB"]
    assert rows[1] == ["F0", "HBM", "20.0", "ms", "30.0", "ms", "3,200", "2,130", "0.000125", "0.000187"]
    assert "F1 does not compile: RESOURCE_EXHAUSTED: it needs 48.00G" in text
    assert text.count("stimates") == 3
    assert FOOTER in text.replace("\n", " ")


def test_core_hours_are_left_out_where_the_images_are_not_known(tmp_path: Path) -> None:
    path = written(tmp_path, data={"source": "folder", "path": "not/here", "image_size": 8})
    asked = request(path, topology="v4:2x2x1")
    console = Console(width=80, record=True, file=io.StringIO())
    render(asked, [a_program(load_study(path))], console)
    text = console.export_text()
    assert "core-hours\n" not in text
    assert "--images N" in text
    assert "core_hours_per_epoch_expected" not in as_json(asked, [a_program(load_study(path))])


def test_json_holds_every_figure(study_file: Path) -> None:
    study = load_study(study_file)
    said = json.loads(as_json(request(study_file, topology="v4:2x2x1"), [a_program(study)]))
    (program,) = said["programs"]
    assert (said["topology"], said["cores"], said["images_per_epoch"]) == ("v4:2x2x1", 8, 1438)
    assert (program["variant"], program["error"], program["costs"]["memory"]["total"]) == ("F0", None, 4 * 2**30)
    assert program["estimates"]["images_per_second_per_core_at_most"] == pytest.approx(3200)
    assert program["estimates"]["core_hours_per_epoch_at_least"] == pytest.approx(1438 / 3200 / 3600)
    assert FOOTER in said["notes"]


def test_the_costliest_instructions_are_listed() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    render_top(TEXT, 5, console, title="F0")
    text = console.export_text()
    assert "0.00 GB of HBM, 0.000 TFLOP in products, 0.00 ms" in text
    assert "add: -> f32[8,128], f32[8,128], f32[8,128]; twice" in text


# ---- What a plan may use --------------------------------------------------------------------------------------------


def test_a_plan_finds_each_variants_program(study_file: Path) -> None:
    study = load_study(study_file)
    store = Programs(study)
    assert load_programs(study) == {}
    one_core = a_program(study, cores=1)
    slice_ = a_program(study, compiled_at=2.0)
    older = dataclasses.replace(slice_, compiled_at=1.0, hlo_sha256="1" * 64)
    for program in (slice_, older, one_core, a_program(study, batch_size=1024), a_program(study, precision="float32")):
        store.put(program)
    store.put(a_program(study, "F1", error="too large", costs=None))
    assert load_programs(study) == {"F0": slice_}
    assert load_programs(load_study(written(study_file.parent, model__width=0.0625))) == {}


def test_programs_are_recorded_for_every_study_of_the_same_models(
    study_file: Path, compiler: FakeCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aot, "compiler_environment", lambda tell: compiler.folder)
    file = study_file.parent / "programs.json"
    out = Console(file=io.StringIO(), width=80)
    compile_study(study_file, out, topology="v4:2x2x1", variants=["F1"], record_in=file)
    elsewhere = load_study(written(study_file.parent, storage="elsewhere", name="another"))
    assert {variant: program.images for variant, program in load_programs(elsewhere, file).items()} == {"F1": 64}
    assert load_programs(elsewhere) == {}


@pytest.mark.slow
def test_the_real_compiler_compiles_a_studys_step(study_file: Path) -> None:
    """One variant, one core; then once more, at once."""
    program = "from search.cli import main; main()"
    options = ["aot", str(study_file), "--variant", "F0", "--cores", "1", "--json"]
    command = [sys.executable, "-c", program, *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    said = []
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said.append(json.loads(done.stdout))
    assert said[0] == said[1]
    assert "F0: compiled before" in done.stderr
    (compiled,) = said[0]["programs"]
    assert compiled["error"] is None
    assert compiled["costs"]["unknown_loops"] == 0
    assert 0 < compiled["costs"]["hbm_bytes"] < compiled["costs"]["bytes_accessed"]
    assert compiled["costs"]["memory"]["aliased"] > 0
    assert compiled["costs"]["flops"] > 64 * 1e6
    assert set(load_programs(load_study(study_file))) == {"F0"}
