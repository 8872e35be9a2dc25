"""`convscale aot`: the train steps of a study's variants, compiled for TPU v4 by its own compiler, without a TPU.

A step is exported in a process of its own by torch_xla, and compiled in another, whose environment (.venv-tpu) has a
jax and a libtpu that torch_xla does not go with. What was compiled before is not compiled again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from clusters.tpu import Topology
from models.names import known_name
from search.budgets import Cell
from search.data import counts_of
from search.formats import duration
from search.programs import ROOT, Costs, Program, Programs, settings_of, source_digest
from search.runs import SessionError
from search.study import Study, StudyError, load_study
from trainables.aot.export import ExportedStep, images_per_step
from trainables.aot.hlo import Program as Hlo
from trainables.aot.profile import profile, sums, unknown_loops, with_loops
from trainables.aot.tpu_compiler import ENVIRONMENT, PROGRAM_FILE, TEXT_FILE
from trainables.config import TrialConfig

CLASSES_UNKNOWN: Final = 1000
TEXT_SUFFIX: Final = ".hlo.txt"
_POLL_S: Final = 0.2
_TELL_EVERY_S: Final = 60.0
_END_WITHIN_S: Final = 10.0

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be compiled: a study's variants, each for so many cores of a topology.

    Attributes:
        study: the study.
        topology: the slice.
        cores: how many of its cores a batch is split over: all, or one.
        configs: a trial of each variant.
        images: images of an epoch; None if they are not known.
        notes: what was taken for granted, one line each.
    """

    study: Study
    topology: Topology
    cores: int
    configs: tuple[TrialConfig, ...]
    images: int | None
    notes: tuple[str, ...]


def request(
    path: Path,
    *,
    topology: str,
    cores: int | None = None,
    variants: Sequence[str] = (),
    batch_size: int | None = None,
    images: int | None = None,
) -> Request:
    """What a command line asks for. Raises `StudyError`, one line, for what cannot be."""
    study = load_study(path)
    try:
        slice_ = Topology.parse(topology)
        chosen = [known_name("variant", each, study.model.variants) for each in variants] or study.model.variants
    except ValueError as error:
        raise StudyError(f"{study.source}: {error}") from None
    cores = slice_.cores if cores is None else cores
    if cores not in (1, slice_.cores):
        raise StudyError(
            f"--cores: {cores} given; allowed: 1, or all {slice_.cores} of {slice_}; leave it out for all of them"
        )
    for name, given in (("--batch-size", batch_size), ("--images", images)):
        if given is not None and given < 1:
            raise StudyError(f"{name}: {given} given; allowed: 1 or more; raise it")
    classes, found, notes = _data_of(study)
    batch_size = study.training.batch_size if batch_size is None else batch_size
    configs = [_config(study, variant, classes, batch_size) for variant in dict.fromkeys(chosen)]
    _check_batch(study, configs[0], cores, slice_)
    images = found if images is None else images
    if images is None:
        notes.append(
            "core-hours of an epoch are left out, for the data are not here: give their number with --images N"
        )
    return Request(study, slice_, cores, tuple(configs), images, tuple(notes))


def _data_of(study: Study) -> tuple[int, int | None, list[str]]:
    """(classes, training images or None, notes)."""
    try:
        counts = counts_of(study)
    except StudyError as error:
        note = f"the data cannot be opened, so {CLASSES_UNKNOWN:,} classes are assumed ({error})"
        return CLASSES_UNKNOWN, None, [note]
    return counts.classes, counts.train, list(counts.warnings)


def _config(study: Study, variant: str, classes: int, batch_size: int) -> TrialConfig:
    """A trial of a variant; its rate, its length and its seed do not enter the program."""
    cell = Cell(variant, epochs=1.0, steps=1, warmup_steps=0, flops_per_image=0.0, parameters=0, flops=0.0)
    config = study.trial_config(
        trial_id=f"aot-{variant}", cell=cell, learning_rate=1.0, seed=0, classes=classes, folder=""
    )
    return dataclasses.replace(config, batch_size=batch_size)


def _check_batch(study: Study, config: TrialConfig, cores: int, topology: Topology) -> None:
    images = images_per_step(config, cores)
    if images % cores == 0:
        return
    name = "batch" if images == config.batch_size else "part of a batch (training.micro_batch_size) on all hosts"
    below, above = images // cores * cores, -(-images // cores) * cores
    allowed = f"{below} or {above}" if below else f"{above}"
    raise StudyError(
        f"{study.source}: {name} of {images} images given; allowed: multiples of the {cores} cores of {topology}; "
        f"use {allowed}, with --batch-size or in the study, or --cores 1"
    )


# ---- Compiling ------------------------------------------------------------------------------------------------------


def programs_of(asked: Request, *, tell: Tell, keep: bool = False, compiler: Path | None = None) -> Iterator[Program]:
    """Each variant's program, from the study's storage or compiled now. `compiler`: the environment's folder.

    `keep` also keeps the optimised program's text beside it (and compiles again where that is missing).
    A KeyboardInterrupt ends the compiler's process.
    """
    compiler = compiler or compiler_environment(tell)
    store, source, versions = Programs(asked.study), source_digest(), _versions(compiler)
    for config in asked.configs:
        settings = settings_of(config, str(asked.topology), asked.cores)
        same = [each for each in store.all() if each.settings == settings and each.versions == versions]
        found = next((each for each in reversed(same) if each.source == source and _has_text(store, each, keep)), None)
        if found is None:
            found = _compiled(asked, config, store, same, compiler, keep=keep, source=source, tell=tell)
        else:
            tell(f"{found.variant}: compiled before, in {duration(found.compile_s)}")
        yield found


def _compiled(
    asked: Request,
    config: TrialConfig,
    store: Programs,
    earlier: Sequence[Program],
    compiler: Path,
    *,
    keep: bool,
    source: str,
    tell: Tell,
) -> Program:
    """Export a step and compile it, unless that very program was compiled before under other code."""
    variant, where = config.model.variant, f"{asked.topology}{', one core' * (asked.cores == 1)}"
    with tempfile.TemporaryDirectory(prefix="convscale-aot-") as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
        arguments = [str(folder / "config.json"), str(folder), "--cores", str(asked.cores)]
        command = [sys.executable, "-m", "trainables.aot.export", *arguments]
        log = folder / "log.txt"
        status = _run(command, {"PYTHONPATH": str(ROOT)}, log, lambda s: tell(f"{variant}: exporting, {s} so far"))
        if status:
            raise RuntimeError(f"{variant}: the train step could not be exported:\n{log.read_text(errors='replace')}")
        exported = ExportedStep.read(folder)
        digest = hashlib.sha256(exported.hlo).hexdigest()
        for program in earlier:
            if program.hlo_sha256 == digest and _has_text(store, program, keep):
                same = dataclasses.replace(program, source=source)
                store.put(same)
                return same
        tell(f"{variant}: compiling for {where}, {len(exported.hlo) / 1e6:.1f} MB of program; this takes minutes")
        arguments = [str(folder), "--topology", str(asked.topology), "--cores", str(asked.cores)]
        script = str(ROOT / "trainables" / "aot" / "tpu_compiler.py")
        command = [str(compiler / "bin" / "python"), script, *arguments]
        status = _run(command, ENVIRONMENT, log, lambda s: tell(f"{variant}: compiling for {where}, {s} so far"))
        answer = json.loads((folder / PROGRAM_FILE).read_text(encoding="utf-8")) if status == 0 else None
        program = Program(
            settings=settings_of(config, str(asked.topology), asked.cores),
            hlo_sha256=digest,
            images=exported.images,
            part_of_batch=exported.part_of_batch,
            source=source,
            versions=exported.versions | _compiler_versions(compiler),
            compiled_at=time.time(),
            compile_s=0.0 if answer is None else answer["compile_s"],
            error=_last_words(status, log) if answer is None else answer["error"],
            costs=None if answer is None or answer["error"] else _costs(answer, folder / TEXT_FILE),
        )
        if answer is None:
            return program  # the compiler itself failed, which another time it may not
        if keep and program.costs is not None:
            store.put_text(program, TEXT_SUFFIX, folder / TEXT_FILE)
        store.put(program)
        tell(f"{variant}: {'compiled' if program.error is None else 'refused'} in {duration(program.compile_s)}")
        return program


def _costs(answer: Mapping[str, Any], text: Path) -> Costs:
    """The compiler's figures, with loops counted as often as they run."""
    hlo = Hlo.parse(text.read_text(encoding="utf-8"))
    counted = sums(profile(hlo))
    by_computation = answer["costs"]
    flops, accessed = (
        with_loops(hlo, {name: costs[key] for name, costs in by_computation.items()})
        for key in ("flops", "bytes_accessed")
    )
    return Costs(flops, accessed, counted.hbm_bytes, counted.cycles, dict(answer["memory"]), unknown_loops(hlo))


def _has_text(store: Programs, program: Program, keep: bool) -> bool:
    return not keep or program.costs is None or store.has_text(program, TEXT_SUFFIX)


def _last_words(status: int, log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    how = f"was ended by signal {-status}" if status < 0 else f"failed (status {status})"
    return f"the compiler's process {how}: {lines[-1] if lines else 'it said nothing'}"


def _run(command: Sequence[str], environment: Mapping[str, str], log: Path, tell: Tell) -> int:
    """Run a command to its end and give its exit status; each minute tells how long it has taken."""
    began = time.monotonic()
    told = 1
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
        )
        try:
            while (status := process.poll()) is None:
                time.sleep(_POLL_S)
                if time.monotonic() - began >= told * _TELL_EVERY_S:
                    tell(f"{told} minute{'s' * (told > 1)}")
                    told += 1
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(_END_WITHIN_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    return status


# ---- The compiler's environment -------------------------------------------------------------------------------------


def compiler_environment(tell: Tell, root: Path = ROOT) -> Path:
    """The folder of the environment that has the TPU's compiler; made on first use.

    Raises `SessionError`, one line, if it cannot be made.
    """
    folder = root / ".venv-tpu"
    if (folder / ".installed").exists():
        return folder
    tell("installing the TPU's compiler into .venv-tpu, on first use (1.2 GB; a minute)")
    began = time.monotonic()
    mend = "mend that and run make tpu-compiler"
    if shutil.which("make") is None:
        raise SessionError(f"the TPU's compiler could not be installed: make was not found; {mend}")
    done = subprocess.run(
        ["make", "--no-print-directory", "tpu-compiler", f"PYTHON={sys.executable}"],
        cwd=root,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        said = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "make said nothing")
        raise SessionError(f"the TPU's compiler could not be installed ({said}); {mend}")
    tell(f"installed it in {duration(time.monotonic() - began)}")
    return folder


def _versions(compiler: Path) -> dict[str, str]:
    return {name: metadata.version(name) for name in ("torch", "torch_xla")} | _compiler_versions(compiler)


def _compiler_versions(compiler: Path) -> dict[str, str]:
    sites = [str(path) for path in compiler.glob("lib/python*/site-packages")]
    found = {each.metadata["Name"]: each.version for each in metadata.distributions(path=sites)}
    return {name: found[name] for name in ("jax", "libtpu")}
