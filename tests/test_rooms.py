"""The rooms: who may import whom, which library is used where, and what every file keeps to."""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
ROOMS: Final[dict[str, set[str]]] = {  # a room, and the rooms it may import
    "models": set(),
    "clusters": set(),
    "trainables": {"models", "clusters"},
    "search": {"models", "clusters", "trainables"},
}
MODULES: Final = sorted(path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py"))
LIBRARIES: Final = {  # a library, and the only files or folders that may import it
    "ray": (
        "trainables/worker.py",
        "trainables/xla_backend.py",
        "search/joining.py",
        "search/slices.py",
        "search/lease.py",
        "search/reach.py",
        "search/driver.py",
        "search/proxy.py",
        "clusters/rays_own.py",
    ),
    "jsonschema": ("clusters/rays_own.py",),
    "mlflow": ("search/tracking_server.py",),
    "optuna": ("search/samplers.py", "search/trend_sampler.py", "search/optuna_view.py"),
    "grain": ("trainables/data",),
    "sklearn": ("trainables/data",),
    "PIL": ("trainables/data",),
    "simplejpeg": ("trainables/data/jpeg.py",),
    "cykooz_resizer": ("trainables/data/resize.py",),
    "scipy": ("search/law",),
    "timm": ("models", "trainables"),
    "pydantic": ("search",),
    "pydantic_core": ("search",),
    "yaml": ("search/yaml_file.py",),
    "typer": ("search/cli.py", "search/data_cli.py", "search/cluster_cli.py"),
    "rich": ("search",),
    "matplotlib": ("search/plotting.py", "search/figures"),
    "jinja2": ("search/report/page.py",),
    "torch_xla": ("trainables/runtime", "trainables/aot"),
    "jax": ("trainables/aot/tpu_compiler.py",),
    "jaxlib": ("trainables/aot/tpu_compiler.py",),
    "libtpu": ("trainables/aot/tpu_compiler.py",),
}
OTHERS: Final = {"tests", "benchmarks"}
LONGEST: Final = 400


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import of a file, wherever it stands in it."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            yield node.lineno, node.module or ""


def test_there_are_rooms() -> None:
    assert {path.parts[0] for path in MODULES} == set(ROOMS)
    assert len(MODULES) > 40


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    forbidden = (set(ROOMS) | OTHERS) - ROOMS[room] - {room}
    wrong = [
        f"{path}:{line} imports {name}"
        for path in MODULES
        if path.parts[0] == room
        for line, name in imports(path)
        if name.partition(".")[0] in forbidden
    ]
    assert wrong == []


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_imported_only_where_it_belongs(library: str) -> None:
    wrong = [
        f"{path}:{line} imports {name}"
        for path in MODULES
        for line, name in imports(path)
        if name.partition(".")[0] == library and not any(path.is_relative_to(place) for place in LIBRARIES[library])
    ]
    assert wrong == []


def test_mlflow_grain_and_torch_are_not_imported_before_they_are_needed() -> None:
    """MLflow's import takes seconds, Grain's prints; the command line needs torch only to train."""
    program = (
        "import sys, search.cli, search.session, search.commands, search.views, trainables.data\n"
        "print(sorted({'mlflow', 'grain', 'torch', 'ray', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_importing_a_module_does_nothing_else(tmp_path: Path) -> None:
    """No thread, no output, no file, no change of folder, and no variable of the environment that is our doing."""
    names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in MODULES]
    program = (
        "import importlib, os, sys, threading\n"
        "import matplotlib, optuna, ray, ray.train.torch, ray.tune, timm, torch\n"  # what these do is not our doing
        "def world(): return (threading.active_count(), dict(os.environ), os.getcwd(), sorted(os.listdir()))\n"
        "before = world()\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "assert world() == before, (before, world())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_module_is_one_thing_a_reader_can_name(path: Path) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert text.count("\n") <= LONGEST
    assert not text or ast.get_docstring(ast.parse(text)), "a module says first what it is"


BUILT: Final = {
    ".git",
    ".venv",
    ".venv-tpu",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
    "__pycache__",
    "runs",
}


@functools.cache
def texts() -> dict[Path, str]:
    """Every file of the repository that is text, by its path; what was built or found in it is left out."""
    found: dict[Path, str] = {}
    for folder, below, names in os.walk(ROOT):
        below[:] = [name for name in below if name not in BUILT and not name.endswith(".egg-info")]
        for path in (Path(folder, name) for name in names):
            content = path.read_bytes()
            if b"\0" not in content and path != Path(__file__):
                found[path.relative_to(ROOT)] = content.decode()
    return found


def test_no_file_names_a_host_to_install_from() -> None:
    """Which index packages come from is the business of whoever installs, and of their pip's configuration."""
    host = re.compile(r"pypi\.|pythonhosted\.|index[-_]url|find-links|download\.pytorch|conda\.anaconda", re.IGNORECASE)
    wrong = [
        f"{path}:{number}"
        for path, text in texts().items()
        for number, line in enumerate(text.splitlines(), start=1)
        if host.search(line)
    ]
    assert wrong == []


def test_nothing_is_left_to_be_done_later() -> None:
    mark = re.compile(r"\b(TODO|FIXME|XXX)\b")
    assert [str(path) for path, text in texts().items() if path.suffix == ".py" and mark.search(text)] == []


def test_no_exception_is_passed_over_in_silence() -> None:
    wrong = [
        f"{path}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
        and all(isinstance(statement, ast.Pass) for statement in node.body)
    ]
    assert wrong == []
