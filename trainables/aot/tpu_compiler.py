"""Compile an exported train step with the TPU's own compiler, on a machine that has no TPU.

    .venv-tpu/bin/python trainables/aot/tpu_compiler.py FOLDER --topology v4:2x2x1 --cores 8

It runs in an environment that has jax and libtpu and nothing of ours, so it imports nothing of ours. It reads
FOLDER/step.hlo and step.json as `trainables.aot.export` wrote them, and writes FOLDER/program.json, the compiler's
answer, and FOLDER/program.hlo.txt, the optimised program.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import signal
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

# What libtpu looks for on a TPU's host; and several compilers may run at once, since none of them takes a chip.
ENVIRONMENT: Final = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v4-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
_PR_SET_PDEATHSIG: Final = 1  # of Linux's prctl
PROGRAM_FILE: Final = "program.json"
TEXT_FILE: Final = "program.hlo.txt"


def sharding(role: str, rank: int, cores: int) -> str:
    """How a parameter lies over the cores, in XLA's notation: a batch split along its first axis, all else whole."""
    if role != "batch":
        return "{replicated}"
    return f"{{devices=[{cores}{',1' * (rank - 1)}]<=[{cores}]}}"


def compile_step(hlo: bytes, parameters: Sequence[Mapping[str, Any]], *, topology: str, cores: int) -> Any:
    """The loaded program of a step for `cores` cores of a topology, as XLA splits it (GSPMD).

    Raises jax's `XlaRuntimeError` with the compiler's words if it does not compile.
    """
    import numpy as np
    from jax._src import compiler
    from jax._src.interpreters import mlir
    from jax._src.lib import _jax
    from jax.experimental import topologies
    from jaxlib._hlo import XlaComputation
    from jaxlib.mlir import ir

    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[:cores]
    assert len(devices) == cores, f"{topology} has {len(devices)} cores"
    text = _jax.mlir.xla_computation_to_mlir_module(XlaComputation(hlo))
    with mlir.make_ir_context():
        module = ir.Module.parse(text)
        main = next(
            each for each in module.body.operations if ir.StringAttr(each.attributes["sym_name"]).value == "main"
        )
        attributes = []
        for argument, parameter in zip(main.arguments, parameters, strict=True):
            about = {}
            if cores > 1:
                rank = ir.RankedTensorType(argument.type).rank
                about["mhlo.sharding"] = ir.StringAttr.get(sharding(parameter["role"], rank, cores))
            if parameter["output"] is not None:
                about["tf.aliasing_output"] = ir.IntegerAttr.get(ir.IntegerType.get_signless(32), parameter["output"])
            attributes.append(ir.DictAttr.get(about))
        main.attributes["arg_attrs"] = ir.ArrayAttr.get(attributes)
        if cores > 1:
            whole = ir.DictAttr.get({"mhlo.sharding": ir.StringAttr.get("{replicated}")})
            main.attributes["res_attrs"] = ir.ArrayAttr.get([whole] * len(main.type.results))
        options = compiler.get_compile_options(num_replicas=1, num_partitions=cores)
        build = options.executable_build_options
        build.use_spmd_partitioning = cores > 1
        build.device_assignment = _jax.DeviceAssignment.create(np.array([[device.id for device in devices]]))
        return devices[0].client.compile(module, _jax.DeviceList(tuple(devices)), options)


def memory(program: Any) -> dict[str, int]:
    """Bytes of each core's memory, as the compiler has laid them out."""
    stats = program.get_compiled_memory_stats()
    parts = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "aliased": stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    total = sum(parts.values()) - 2 * parts["aliased"]
    return {name: int(size) for name, size in parts.items()} | {"total": int(total)}


def costs_by_computation(text: str) -> dict[str, dict[str, float]]:
    """XLA's own count of FLOPs and bytes accessed of the whole program ("") and of each loop's body and condition.

    XLA counts a loop's body once, however often it runs; with these counts and the loops' trips that can be mended.
    """
    import jax
    from jax._src.lib import _jax
    from jaxlib._hlo import hlo_module_from_text

    client = jax.devices("cpu")[0].client

    def cost(module: str) -> dict[str, float]:
        found = _jax.hlo_module_cost_analysis(client, hlo_module_from_text(module))
        return {"flops": float(found.get("flops", 0.0)), "bytes_accessed": float(found.get("bytes accessed", 0.0))}

    loops = re.findall(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)", text)
    names = dict.fromkeys(name for pair in loops for name in pair)
    return {"": cost(text)} | {name: cost(module_of(text, name)) for name in names}


def module_of(text: str, computation: str) -> str:
    """The text of a module whose entry is one of the computations of another."""
    body = text.split("\n", 1)[1]
    body = re.sub(r"(?ms)^(FileNames|FunctionNames|FileLocations|StackFrames)$.*?\n\n", "", body)
    body = re.sub(r" stack_frame_id=\d+", "", body)
    body = re.sub(r"(?m)^ENTRY ", "", body)
    body, found = re.subn(rf"(?m)^(?=%?{re.escape(computation)} \()", "ENTRY ", body)
    assert found == 1, f"{computation} is not in the program once"
    return f"HloModule loop\n\n{body}"


def first_line(error: Exception) -> str:
    """What the compiler says first, on one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def answer(folder: Path, *, topology: str, cores: int) -> dict[str, Any]:
    """Compile the step in `folder`; what came of it, as JSON values. Writes the optimised program if there is one."""
    import jax

    step = json.loads((folder / "step.json").read_text(encoding="utf-8"))
    result: dict[str, Any] = {
        "topology": topology,
        "cores": cores,
        "versions": {name: metadata.version(name) for name in ("jax", "libtpu")},
    }
    began = time.monotonic()
    try:
        hlo = (folder / "step.hlo").read_bytes()
        program = compile_step(hlo, step["parameters"], topology=topology, cores=cores)
    except jax.errors.JaxRuntimeError as error:
        return result | {"error": first_line(error), "compile_s": time.monotonic() - began}
    result["compile_s"] = time.monotonic() - began
    text = program.hlo_modules()[0].to_string()
    (folder / TEXT_FILE).write_text(text, encoding="utf-8")
    return result | {"error": None, "memory": memory(program), "costs": costs_by_computation(text)}


def end_with_parent() -> None:
    """Have the kernel end this process when the one that started it ends: nobody would read the answer."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Compile the step in a folder and write the answer beside it."""
    parser = argparse.ArgumentParser(description="Compile an exported step for TPU v4.")
    parser.add_argument("folder", type=Path, help="where step.hlo and step.json are, and the answer goes")
    parser.add_argument("--topology", required=True, help="such as v4:2x2x1")
    parser.add_argument("--cores", type=int, required=True, help="of the topology, which the batch is split over")
    arguments = parser.parse_args()
    end_with_parent()
    os.environ.update(ENVIRONMENT)
    found = answer(arguments.folder, topology=arguments.topology, cores=arguments.cores)
    aside = arguments.folder / f"{PROGRAM_FILE}.new"
    aside.write_text(json.dumps(found), encoding="utf-8")
    aside.replace(arguments.folder / PROGRAM_FILE)


if __name__ == "__main__":
    main()
