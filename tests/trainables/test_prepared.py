"""How large a program a variant becomes on a TPU: how many blocks the compiler sees."""

from pathlib import Path
from typing import ClassVar

import pytest
from torch import nn

from models.families import ModelSize, build_model, turns_of_loops
from models.nfnet import VARIANTS
from models.repeated import Repeated
from tests.trainables.trials import tiny_trial
from trainables.config import LOOP_FROM
from trainables.meter import Meter
from trainables.runtime.prepared import prepared
from trainables.runtime.torch import TorchRuntime
from trainables.trial import Trial


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_program_has_more_than_fifty_blocks(variant: str) -> None:
    model = prepared(build_model(ModelSize(variant, 224, 1000), device="meta"))
    blocks = [block for stage in model.stages for block in stage.children()]
    loops = [block for block in blocks if isinstance(block, Repeated)]
    assert len(blocks) <= 50
    assert len(loops) == (0 if variant in ("F0", "F1", "F2", "F3", "F3+") else 1)
    assert len(blocks) + sum(loop.count - 1 for loop in loops) == sum(VARIANTS[variant].depths)


@pytest.mark.parametrize("loop_from", [None, 2, 5, 6, 24])
@pytest.mark.parametrize("variant", ["F0", "F1", "F7"])
def test_loops_are_those_that_are_told_beforehand(variant: str, loop_from: int | None) -> None:
    size = ModelSize(variant, 224, 1000)
    model = prepared(build_model(size, device="meta"), loop_from=loop_from)
    loops = [module.count for module in model.modules() if isinstance(module, Repeated)]
    assert loops == turns_of_loops(size, loop_from)


def test_a_trials_model_is_placed_with_the_loops_of_its_config(tmp_path: Path) -> None:
    class Recording(TorchRuntime):
        placed: ClassVar[list[int | None]] = []

        def place(self, model: nn.Module, *, loop_from: int | None = LOOP_FROM) -> nn.Module:
            self.placed.append(loop_from)
            return super().place(model, loop_from=loop_from)

    for loop_from in (None, 7, LOOP_FROM):
        Trial.at_start(tiny_trial(tmp_path, loop_from=loop_from), Recording("cpu", cores=1), Meter(cores=1))
    assert Recording.placed == [None, 7, LOOP_FROM]
