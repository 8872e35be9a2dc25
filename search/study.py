"""A study: what is searched, on which data, with how much compute. One YAML file, read into one frozen object."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, field_validator, model_validator

from models.families import FAMILIES, ModelSize, check_model, variants
from models.names import known_name
from search.complaints import complaints, show
from search.compute_section import Compute
from search.data_section import Data
from search.sections import Epochs, LearningRate, Model, Published, Search, Section, Tracking, Training
from search.units import Quantity, parse_quantity, same_amount
from search.yaml_file import YamlError, parse_yaml
from trainables.config import (
    CheckpointConfig,
    DataConfig,
    DivergenceConfig,
    ModelConfig,
    OptimiserConfig,
    TrialConfig,
    flat,
)

if TYPE_CHECKING:
    from search.budgets import Cell


class StudyError(ValueError):
    """A study that cannot be run as written: one line for each problem, each naming the file and the field."""


class Study(Section):
    """A study as its file describes it; see `search.sections` for the sections."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=64,
        description="Names the study's folder in the storage and its MLflow experiment.",
    )
    data: Data = Field(description="Where the images come from, such as {source: folder, path: my-images}.")
    model: Model = Field(default_factory=Model, description="Which variants are searched.")
    budgets: tuple[Annotated[Quantity, BeforeValidator(parse_quantity)], ...] = Field(
        min_length=1,
        description="Training compute of one trial, rising: "
        '"400 core-hours", "400 TPU-v4 core-hours", "2e15 FLOPs", "2 PFLOPs".',
    )
    epochs: Epochs = Field(default_factory=Epochs, description="How many passes over the data a trial may make.")
    learning_rate: LearningRate = Field(default_factory=LearningRate, description="The grid of peak learning rates.")
    search: Search = Field(default_factory=Search, description="How trials are proposed.")
    training: Training = Field(default_factory=Training, description="How every trial trains.")
    compute: Compute = Field(default_factory=Compute, description="What the study may use of the machine.")
    tracking: Tracking = Field(default_factory=Tracking, description="The MLflow view of the study.")
    published: tuple[Published, ...] = Field(
        default=(),
        description="What others report of the same training: a plan for TPUs shows it beside its own figures. "
        "May change while a study goes on.",
    )
    storage: str = Field(
        default="runs",
        min_length=1,
        description="Where results go: a folder or any fsspec address, such as gs://bucket/runs. "
        "A relative folder is relative to the working directory of the command.",
    )
    _source: str = PrivateAttr(default="study")

    @property
    def source(self) -> str:
        """The file the study was read from, as messages name it."""
        return self._source

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """The grid of peak learning rates, rising."""
        return self.learning_rate.rates(self.training.batch_size)

    @property
    def storage_url(self) -> str:
        """The storage as an absolute path, or an fsspec address."""
        return _absolute(self.storage)

    def trial_config(
        self,
        *,
        trial_id: str,
        cell: Cell,
        learning_rate: float,
        seed: int,
        classes: int,
        folder: str,
    ) -> TrialConfig:
        """Everything a trial's result depends on. `folder` is where its checkpoints go (any fsspec address)."""
        training = self.training
        return TrialConfig(
            trial_id=trial_id,
            model=ModelConfig(
                **asdict(self.model_size(cell.variant, classes)),
                drop_rate=self.model.drop_rate,
                drop_path_rate=self.model.drop_path_rate,
            ),
            data=self.data_config(),
            optimiser=OptimiserConfig(
                learning_rate=learning_rate,
                momentum=training.momentum,
                weight_decay=training.weight_decay,
                agc_clip=training.agc_clip,
                agc_eps=training.agc_eps,
                label_smoothing=training.label_smoothing,
                ema_decay=training.ema_decay,
            ),
            checkpoint=CheckpointConfig(folder=folder, **training.checkpoint.model_dump()),
            batch_size=training.batch_size,
            steps=cell.steps,
            warmup_steps=cell.warmup_steps,
            seed=seed,
            micro_batch_size=training.micro_batch_size,
            loop_from=self.compute.loop_from,
            eval_batch_size=training.eval_batch_size,
            precision=training.precision,
            log_points=training.log_points,
            flops_per_image=cell.flops_per_image,
            divergence=DivergenceConfig(**training.divergence.model_dump()),
        )

    def model_size(self, variant: str, classes: int) -> ModelSize:
        """One of the study's variants, for data of so many classes."""
        model = self.model
        return ModelSize(
            variant=variant,
            image_size=self.data.image_size,
            classes=classes,
            family=model.family,
            width=model.width,
            group_size=model.group_size,
            stem=model.stem,
        )

    def data_config(self) -> DataConfig:
        """The data section for the trainable; a local path is made absolute, because workers run elsewhere."""
        values = self.data.model_dump(exclude={"declared"})
        if self.data.path is not None:
            values["path"] = _absolute(self.data.path)
        return DataConfig(**values)

    def identity(self) -> dict[str, Any]:
        """What results depend on, as JSON values by dotted name: equal identities may share a ledger.

        Left out: what may change while a study goes on (budgets, variants, range of epochs, search, compute, tracking,
        storage, what others published), and what changes no number, but for rounding and the masks that dropout draws:
        where the images lie, what is declared of them, what becomes of unreadable ones, decoding processes,
        checkpoints, points of the curve, the parts that a step is taken in, batch size of the evaluation.
        """
        sections = {
            "data": self.data.model_dump(exclude={"path", "declared", "bad_images", "decode_workers"}),
            "model": self.model.model_dump(exclude={"variants"}),
            "epochs": self.epochs.model_dump(include={"grid"}),
            # the bounds may move while a study goes on, the grid's points may not
            "learning_rate": {
                "base": self.learning_rate.base_rate(self.training.batch_size),
                "factor": self.learning_rate.factor,
            },
            "training": self.training.model_dump(
                exclude={"micro_batch_size", "checkpoint", "eval_batch_size", "log_points"}
            ),
        }
        return flat(sections)

    @field_validator("storage")
    @classmethod
    def _folder_or_address(cls, storage: str) -> str:
        """An address that is misspelt would be taken for a local folder of that name."""
        if not storage.strip():
            raise ValueError("allowed: a folder or an address; write its name, such as runs")
        if found := re.match(r"([A-Za-z][A-Za-z0-9+.-]*):(?!//)/*(.*)", storage, re.DOTALL):
            raise ValueError(
                f"allowed: a folder, or an address with ://; write {found[1]}://{found[2]}, or ./{storage} for a folder"
            )
        return storage

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = [*self._model_problems(), *self._budget_problems(), *self._batch_problems()]
        try:
            self.learning_rate.rates(self.training.batch_size)
        except ValueError as error:
            problems.append(f"learning_rate: {error}")
        most = 2**32 - self.search.seeds
        if self.training.seed > most:
            problems.append(
                f"search.seeds: {self.search.seeds} given; allowed: that training.seed, {self.training.seed}, and the "
                f"seeds after it stay below 2^32; lower training.seed to {most} or less"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _model_problems(self) -> list[str]:
        model = self.model
        try:
            known_name("family", model.family, FAMILIES)
        except ValueError as error:
            return [f"model.family: {error}"]
        problems: list[str] = []
        for place, variant in enumerate(model.variants):
            try:
                known_name("variant", variant, variants(model.family))
            except ValueError as error:
                problems.append(f"model.variants[{place}]: {error}")
                continue
            if variant in model.variants[:place]:
                problems.append(f"model.variants[{place}]: {show(variant)} is given twice; remove one")
        for place, published in enumerate(self.published):
            try:
                known_name("variant", published.variant, variants(model.family))
            except ValueError as error:
                problems.append(f"published[{place}].variant: {error}")
        try:
            if not problems:
                for variant in model.variants:
                    check_model(self.model_size(variant, classes=1))
        except ValueError as error:
            problems.append(f"model: {error}")
        return problems

    def _budget_problems(self) -> list[str]:
        """Budgets must rise; core-hours and FLOPs are compared here only where the rate between them is given."""
        rate = self.compute.flops_per_core_second
        problems: list[str] = []
        for place, (low, high) in enumerate(zip(self.budgets, self.budgets[1:], strict=False), start=1):
            alike = (low.unit, low.device) == (high.unit, high.device)
            before, after = (low.amount, high.amount) if alike else (low.flops(rate), high.flops(rate))
            if before is not None and after is not None and (after < before or same_amount(before, after)):
                problems.append(
                    f"budgets[{place}]: {show(high)} given after {show(low)}; "
                    "allowed: rising budgets, none twice; sort them"
                )
        return problems

    def _batch_problems(self) -> list[str]:
        workers, cores, training = self.compute.workers_per_slice, self.compute.cores_per_slice, self.training
        shared = "compute.workers_per_slice" if self.compute.accelerator is None else "the hosts of compute.accelerator"
        problems = [
            f"training.{name}: {size} given; allowed: multiples of {shared} ({workers}); "
            f"use {max(1, round(size / workers)) * workers}"
            for name, size in (("batch_size", training.batch_size), ("eval_batch_size", training.eval_batch_size))
            if size % workers
        ]
        if cores is not None and cores < workers:
            problems.append(f"compute.cores_per_slice: {cores} given; allowed: {shared} ({workers}) or more; raise it")
        return problems


def load_study(path: str | os.PathLike[str]) -> Study:
    """Read a study file.

    Raises:
        StudyError: a file that cannot be read or is not a study; one line for each problem.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        beside = [other.name for pattern in ("*.yaml", "*.yml") for other in sorted(file.parent.glob(pattern))]
        near = difflib.get_close_matches(file.name, beside, n=1)
        mend = f"did you mean {file.parent / near[0]}?" if near else "give the path of a study file (YAML)"
        raise StudyError(f"{file}: no such file; {mend}") from None
    except IsADirectoryError:
        raise StudyError(f"{file}: is a folder; give the path of a study file (YAML) in it") from None
    except UnicodeDecodeError as error:
        raise StudyError(f"{file}: byte {error.start} is not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise StudyError(f"{file}: cannot be read ({error.strerror}); check the path and its permissions") from None
    return read_study(text, source=str(file))


def read_study(text: str, *, source: str = "study") -> Study:
    """Read a study from the text of its file; `source` is what messages call that file.

    Raises:
        StudyError: text that is not a study; one line for each problem.
    """
    try:
        document = parse_yaml(text)
    except YamlError as error:
        raise StudyError(f"{source}:{error}") from None
    if document is None:
        raise StudyError(f"{source}: is empty; a study needs at least name, data and budgets")
    if not isinstance(document, dict):
        allowed = ", ".join(Study.model_fields)
        raise StudyError(f"{source}: {show(document)} given; allowed: fields ({allowed}), each as 'field: value'")
    try:
        study = Study.model_validate(document)
    except ValidationError as error:
        lines = complaints(error, Study, document)
        raise StudyError("\n".join(f"{source}: {line}" for line in lines)) from None
    study._source = source
    return study


def _absolute(address: str) -> str:
    """A local path as an absolute one; an address with a scheme as it is, without slashes at its end."""
    local = address.removeprefix("file://")
    if "://" not in local:
        return os.path.abspath(os.path.expanduser(local))
    return address if address.endswith("://") else address.rstrip("/")
