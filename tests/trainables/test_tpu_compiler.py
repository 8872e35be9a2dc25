"""The TPU's compiler: how a step is handed to it, and that its counts hold for loops and for several cores.

What is compiled here is written in jax, in the compiler's own environment (`make tpu-compiler`), small enough for
seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
from pathlib import Path
from typing import Any, Final

import pytest

from trainables.aot.hlo import Program
from trainables.aot.profile import loop_times, profile, sums, unknown_loops, with_loops
from trainables.aot.tpu_compiler import ENVIRONMENT, first_line, module_of, sharding

ROOT: Final = Path(__file__).resolve().parents[2]
COMPILER: Final = ROOT / ".venv-tpu" / "bin" / "python"

PROGRAMS: Final = """
    import json, sys
    from pathlib import Path

    import jax
    import jax.numpy as jnp

    STEPS, WIDTH, BATCH = 7, 256, 64

    def block(x, weights):
        return jnp.tanh(x.astype(jnp.bfloat16) @ weights.astype(jnp.bfloat16)).astype(jnp.float32)

    def scanned(weights, x):
        return jax.lax.scan(lambda x, w: (block(x, w), None), x, weights)[0]

    def unrolled(weights, x):
        for step in range(STEPS):
            x = block(x, weights[step])
        return x

    def step(forward):  # (loss, new weights) of (weights, batch), as a train step is
        def run(weights, x):
            loss, gradient = jax.value_and_grad(lambda w: (forward(w, x) ** 2).mean())(weights)
            return loss, weights - 0.1 * gradient
        return run

    def write(name, function, *shapes, state=True):
        folder = Path(sys.argv[1]) / name
        folder.mkdir()
        arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        hlo = jax.jit(function).lower(*arguments).compiler_ir(dialect="hlo").as_serialized_hlo_module_proto()
        (folder / "step.hlo").write_bytes(hlo)
        roles = [{"role": "state", "name": "weights", "output": 1 if state else None},
                 {"role": "batch", "name": "x", "output": None}]
        (folder / "step.json").write_text(json.dumps({"parameters": roles}))

    weights, x = (STEPS, WIDTH, WIDTH), (BATCH, WIDTH)
    write("scanned", step(scanned), weights, x)
    write("unrolled", step(unrolled), weights, x)
    write("eight", step(unrolled), weights, x)
    write("too-large", lambda w, x: x @ w, (65536, 65536), (65536, 65536), state=False)
"""


def test_a_batch_is_split_along_its_first_axis() -> None:
    assert sharding("batch", 4, 8) == "{devices=[8,1,1,1]<=[8]}"
    assert sharding("batch", 1, 8) == "{devices=[8]<=[8]}"
    assert sharding("state", 4, 8) == sharding("value", 0, 8) == "{replicated}"


def test_an_error_is_told_in_its_first_line() -> None:
    error = RuntimeError("\n  RESOURCE_EXHAUSTED: out of memory.  \nLargest allocations:\n 1.\n")
    assert first_line(error) == "RESOURCE_EXHAUSTED: out of memory."
    assert first_line(RuntimeError()) == "RuntimeError"


def test_a_computation_becomes_a_module_of_its_own() -> None:
    tables = 'FileNames\n1 "a"\n\n\n'
    text = f"HloModule m, layout={{}}\n\n{tables}%loop (a: f32[]) -> f32[] {{\n}}\n\nENTRY %main () -> f32[] {{\n}}\n"
    module = module_of(text, "loop")
    assert module.startswith("HloModule loop\n")
    assert "\nENTRY %loop (a: f32[]) -> f32[] {\n" in module
    assert "\n%main () -> f32[] {\n" in module
    assert "FileNames" not in module


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the compiler's answers to the programs above."""
    if not COMPILER.exists():
        pytest.fail("the TPU's compiler is not installed; run make tpu-compiler")
    folder = tmp_path_factory.mktemp("programs")
    _run("-c", textwrap.dedent(PROGRAMS), str(folder))
    for name in ("scanned", "unrolled", "eight", "too-large"):
        cores = "8" if name == "eight" else "1"
        script = ROOT / "trainables" / "aot" / "tpu_compiler.py"
        _run(str(script), str(folder / name), "--topology", "v4:2x2x1", "--cores", cores)
    return folder


def _run(*arguments: str) -> None:
    done = subprocess.run(
        [str(COMPILER), *arguments], env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def answer(folder: Path, name: str) -> tuple[dict[str, Any], Program]:
    """What the compiler said of a program, and the optimised program."""
    said = json.loads((folder / name / "program.json").read_text(encoding="utf-8"))
    return said, Program.parse((folder / name / "program.hlo.txt").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_loop_costs_what_its_turns_cost_written_out(compiled: Path) -> None:
    (looped, in_loop), (flat, written_out) = answer(compiled, "scanned"), answer(compiled, "unrolled")
    assert unknown_loops(in_loop) == 0
    assert loop_times(in_loop)
    assert set(loop_times(in_loop).values()) == {7, 8}
    assert loop_times(written_out) == {}
    flops_looped = with_loops(in_loop, {name: cost["flops"] for name, cost in looped["costs"].items()})
    assert looped["costs"][""]["flops"] < 0.3 * flops_looped  # XLA counts one turn
    # Written out, the gradient of the first input is not computed: 3 x 7 - 1 products instead of 3 x 7.
    assert flops_looped == pytest.approx(flat["costs"][""]["flops"] * 21 / 20, rel=0.03)
    product = 2 * 64 * 256 * 256
    assert sums(profile(in_loop)).flops == 21 * product
    assert sums(profile(written_out)).flops == 20 * product


@pytest.mark.slow
def test_state_is_replaced_where_it_lies(compiled: Path) -> None:
    said, program = answer(compiled, "unrolled")
    weights = 7 * 256 * 256 * 4
    assert said["memory"]["aliased"] == weights
    assert said["memory"]["total"] >= weights
    assert said["memory"]["total"] == sum(said["memory"][name] for name in ("arguments", "temporaries", "code")) + (
        said["memory"]["outputs"] - weights
    )
    assert sums(profile(program)).hbm_bytes >= 2 * weights  # read once and written once, at the least
    assert sums(profile(program)).cycles > 0


@pytest.mark.slow
def test_a_batch_is_split_over_the_cores_and_gradients_meet(compiled: Path) -> None:
    (one, _), (eight, program) = answer(compiled, "unrolled"), answer(compiled, "eight")
    batch = 64 * 256 * 4
    assert one["memory"]["arguments"] - eight["memory"]["arguments"] == batch - batch // 8
    assert sums(profile(program)).flops == 20 * 2 * 8 * 256 * 256
    assert any(each.instruction.opcode.startswith("all-reduce") for each in profile(program))


@pytest.mark.slow
def test_a_program_that_does_not_fit_is_answered_in_one_line(compiled: Path) -> None:
    said = json.loads((compiled / "too-large" / "program.json").read_text(encoding="utf-8"))
    assert "RESOURCE_EXHAUSTED" in said["error"]
    assert "\n" not in said["error"]
    assert "memory" not in said
