"""Train steps that the TPU's compiler has compiled: what it said of each, what follows for its speed, where it is kept.

Every figure is of one core and one step. Nothing here was measured on a TPU.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import fsspec

from clusters.tpu import CLOCK_HZ, CORES_PER_HOST, HBM_BYTES_PER_S, PEAK_FLOPS_PER_S
from models.families import turns_of_loops
from search.study import Study
from trainables.config import TrialConfig

ROOT: Final = Path(__file__).resolve().parent.parent
RECORDED: Final = ROOT / "clusters" / "v4_programs.json"
FORMAT: Final = 2
_SOURCES: Final = ("models", "trainables", "clusters")


@dataclass(frozen=True, slots=True)
class Costs:
    """What one core does in one step, as the compiler tells it.

    Attributes:
        flops: floating point operations (XLA's count, with loops as often as they run).
        bytes_accessed: bytes that instructions read and write in any memory (XLA's count, with loops likewise).
        hbm_bytes: those of them that go to or come from HBM, filled up to whole tiles.
        cycles: the compiler's own estimate of the core's cycles, transfers left out that run beside the arithmetic.
        memory: bytes of HBM: arguments, outputs, aliased (outputs that take an argument's place), temporaries, code,
            total.
        unknown_loops: loops that could not be read, and count as if they ran once.
    """

    flops: float
    bytes_accessed: float
    hbm_bytes: int
    cycles: int
    memory: dict[str, int]
    unknown_loops: int = 0


@dataclass(frozen=True, slots=True)
class Program:
    """A train step that was compiled, or that the compiler refused.

    Attributes:
        settings: what it is a step of, and for what: model, batch, precision, optimiser, topology, cores.
        hlo_sha256: of the program that the compiler was given.
        images: how many images a step takes, over all cores.
        part_of_batch: whether those are a part of the batch only, because a trial takes its batch in parts.
        source: of this project's code, when it was exported last.
        versions: of torch, torch_xla, jax and libtpu.
        compiled_at: when (seconds since 1970).
        compile_s: how long the compiler took.
        error: the compiler's first line, if it refused; then there are no costs.
    """

    settings: dict[str, Any]
    hlo_sha256: str
    images: int
    part_of_batch: bool
    source: str
    versions: dict[str, str]
    compiled_at: float
    compile_s: float
    error: str | None
    costs: Costs | None

    @property
    def variant(self) -> str:
        """The variant that it trains."""
        return str(self.settings["model"]["variant"])

    @property
    def cores(self) -> int:
        """Over how many cores a step is split."""
        return int(self.settings["cores"])

    @property
    def arithmetic_s(self) -> float | None:
        """Seconds of a step at the core's peak FLOPs per second (of bfloat16)."""
        return None if self.costs is None else self.costs.flops / PEAK_FLOPS_PER_S

    @property
    def transfer_s(self) -> float | None:
        """Seconds of a step at HBM's bandwidth."""
        return None if self.costs is None else self.costs.hbm_bytes / HBM_BYTES_PER_S

    @property
    def roofline_s(self) -> float | None:
        """Seconds that a step takes at least: the longer of the two, as if they overlapped in full."""
        return None if self.costs is None else max(self.arithmetic_s or 0.0, self.transfer_s or 0.0)

    @property
    def binds(self) -> Literal["FLOPs", "HBM"] | None:
        """Which of the two that is: arithmetic, or the transfers to and from HBM."""
        if self.costs is None:
            return None
        return "FLOPs" if (self.arithmetic_s or 0.0) >= (self.transfer_s or 0.0) else "HBM"

    @property
    def expected_s(self) -> float | None:
        """Seconds by the compiler's own estimate of its instructions, never less than the roofline's."""
        return None if self.costs is None else max(self.costs.cycles / CLOCK_HZ, self.roofline_s or 0.0)

    def images_per_s(self, seconds: float | None) -> float | None:
        """Images per second of one core, at so many seconds a step."""
        return self.images / self.cores / seconds if seconds else None

    def core_hours(self, images: int, seconds: float | None) -> float | None:
        """Core-hours of training on so many images, at so many seconds a step."""
        rate = self.images_per_s(seconds)
        return images / rate / 3600 if rate else None

    @property
    def name(self) -> str:
        """The name of its file, which everything enters that it depends on."""
        return f"{self.variant}-{self.cores}-cores-{_digest([self.settings, self.versions, self.hlo_sha256])[:16]}"

    def to_json(self) -> str:
        """As JSON, with the estimates that follow."""
        values = dataclasses.asdict(self) | {
            "format": FORMAT,
            "estimates": {
                "roofline_s": self.roofline_s,
                "binds": self.binds,
                "expected_s": self.expected_s,
                "images_per_second_per_core_at_most": self.images_per_s(self.roofline_s),
                "images_per_second_per_core_expected": self.images_per_s(self.expected_s),
            },
        }
        return json.dumps(values, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Program | None:
        """The inverse of `to_json`; None if it was written by another version of this project."""
        values = json.loads(text)
        if values.pop("format", None) != FORMAT:
            return None
        del values["estimates"]
        costs = values.pop("costs")
        return cls(**values, costs=None if costs is None else Costs(**costs))


def settings_of(config: TrialConfig, topology: str, cores: int) -> dict[str, Any]:
    """What a step's program depends on besides versions and code, as JSON values. Rates are data of the program."""
    optimiser = dataclasses.asdict(config.optimiser)
    del optimiser["learning_rate"]
    optimiser["ema_decay"] = config.optimiser.ema_decay is not None
    return {
        "model": dataclasses.asdict(config.model),
        "batch_size": config.batch_size,
        "micro_batch_size": config.micro_batch_size,
        "loops": turns_of_loops(config.model, config.loop_from),
        "precision": config.precision,
        "optimiser": optimiser,
        "topology": topology,
        "cores": cores,
    }


def source_digest() -> str:
    """A digest of the code that a train step comes from."""
    files = sorted(path for room in _SOURCES for path in (ROOT / room).rglob("*.py"))
    return _digest([[str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")] for path in files])[:16]


class Programs:
    """The programs of a study, one JSON file each in the folder `aot` of the study's storage."""

    def __init__(self, study: Study) -> None:
        self.url = f"{study.storage_url}/{study.name}/aot"
        self._fs, self._folder = fsspec.core.url_to_fs(self.url)

    def all(self) -> list[Program]:
        """Every program there is, the newest last."""
        if not self._fs.isdir(self._folder):
            return []
        files = [name for name in self._fs.ls(self._folder, detail=False) if name.endswith(".json")]
        read = (Program.from_json(self._fs.cat_file(name).decode()) for name in sorted(files))
        return sorted((program for program in read if program is not None), key=lambda program: program.compiled_at)

    def put(self, program: Program) -> None:
        """Keep a program; another reader sees it whole or not at all."""
        self._fs.makedirs(self._folder, exist_ok=True)
        file = f"{self._folder}/{program.name}.json"
        self._fs.pipe_file(f"{file}.new", program.to_json().encode())
        self._fs.mv(f"{file}.new", file)

    def put_text(self, program: Program, suffix: str, text: Path) -> None:
        """Keep a file beside a program, under its name."""
        self._fs.makedirs(self._folder, exist_ok=True)
        self._fs.put_file(str(text), f"{self._folder}/{program.name}{suffix}")

    def has_text(self, program: Program, suffix: str) -> bool:
        """Whether `put_text` has kept one."""
        return bool(self._fs.exists(f"{self._folder}/{program.name}{suffix}"))

    def path(self, program: Program, suffix: str) -> str:
        """Where `put_text` keeps one, as a person would name it."""
        return f"{self.url}/{program.name}{suffix}"

    def text(self, program: Program, suffix: str) -> str:
        """What `put_text` kept."""
        return str(self._fs.cat_file(f"{self._folder}/{program.name}{suffix}").decode())


def load_programs(study: Study, recorded: Path = RECORDED) -> dict[str, Program]:
    """The program by which each of the study's variants is judged, of those that were compiled before.

    They are of the study's own model, loops, precision and optimiser (for any number of classes). First come those
    whose images per core are nearest to the study's, because every step reads and writes all weights, however many
    images share that; then those over more cores, which also exchange gradients; then those of a part of a batch where
    the study takes parts, else of a whole one; then the newest. A variant that the study's storage has none of takes
    one that comes with this repository (see `record`), if its images per core are the study's. Variants without one are
    left out.
    """
    wanted = images_per_core(study)
    best = _best(study, Programs(study).all(), wanted)
    missing = [variant for variant in study.model.variants if variant not in best]
    if missing:
        alike = [each for each in recorded_programs(recorded) if math.isclose(each.images / each.cores, wanted)]
        best = _best(study, alike, wanted) | best
    return {variant: best[variant] for variant in study.model.variants if variant in best}


def images_per_core(study: Study) -> float:
    """Images that a core takes at once in a slice of as many TPU hosts as the study has workers."""
    training, hosts = study.training, study.compute.workers_per_slice
    share = training.batch_size / hosts
    return min(share, training.micro_batch_size or share) / CORES_PER_HOST


def takes_parts(study: Study) -> bool:
    """Whether the study's workers take their batches in parts."""
    training = study.training
    micro = training.micro_batch_size
    return micro is not None and micro < training.batch_size // study.compute.workers_per_slice


def recorded_programs(path: Path = RECORDED) -> list[Program]:
    """The programs of a file that `record` writes, the newest last; none where there is no file."""
    records = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    read = (Program.from_json(json.dumps(values)) for values in records.values())
    return sorted((program for program in read if program is not None), key=lambda program: program.compiled_at)


def record(programs: Iterable[Program], path: Path) -> list[str]:
    """Add programs to a file of programs, by their names, in place of earlier ones of the same settings.

    Those that the compiler refused are left out. Returns the variants that were added.

    Raises:
        ValueError: the file holds anything else, which stays as it is.
    """
    try:
        records = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        others = [name for name, values in records.items() if Program.from_json(json.dumps(values)) is None]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError("it is no file of programs") from error
    if others:
        raise ValueError(f"{others[0]} in it is no program of this version")
    added = [program for program in programs if program.costs is not None]
    settings = [program.settings for program in added]
    kept = [program for program in recorded_programs(path) if program.settings not in settings]
    records = {program.name: json.loads(program.to_json()) for program in (*kept, *added)}
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    unfinished.replace(path)
    return [program.variant for program in added]


def _best(study: Study, programs: Iterable[Program], wanted: float) -> dict[str, Program]:
    """By variant; of programs that are as good the last."""
    in_parts = takes_parts(study)

    def standing(program: Program) -> tuple[float, int, bool]:
        apart = abs(math.log(program.images / program.cores / wanted))
        return -apart, program.cores, program.part_of_batch == in_parts

    best: dict[str, Program] = {}
    for program in programs:
        if program.costs is None or not _is_of(study, program.settings):
            continue
        before = best.get(program.variant)
        if before is None or standing(program) >= standing(before):
            best[program.variant] = program
    return best


def _is_of(study: Study, settings: Mapping[str, Any]) -> bool:
    model, training = settings["model"], study.training
    if model["variant"] not in study.model.variants or settings["precision"] != training.precision:
        return False
    wanted = dataclasses.asdict(study.model_size(model["variant"], model["classes"]))
    wanted |= {"drop_rate": study.model.drop_rate, "drop_path_rate": study.model.drop_path_rate}
    loops = turns_of_loops(study.model_size(model["variant"], model["classes"]), study.compute.loop_from)
    optimiser = settings["optimiser"]
    clipped = (optimiser["agc_clip"] is None) == (training.agc_clip is None)
    averaged = optimiser["ema_decay"] == (training.ema_decay is not None)
    return bool(model == wanted and settings["loops"] == loops and clipped and averaged)


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
