"""`convscale cluster check` as a user runs it: several files, broken ones, and ones that are none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from search import cli

pytestmark = pytest.mark.filterwarnings("default")  # Ray's own warnings are not ours
FOLDER = Path(__file__).resolve().parent.parent.parent / "clusters"
Called = Callable[..., tuple[int, list[str], list[str]]]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Called:
    """Calls the command in a folder of its own: exit status, lines of standard output and of standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*files: str | Path) -> tuple[int, list[str], list[str]]:
        monkeypatch.setattr(sys, "argv", ["convscale", "cluster", "check", *map(str, files)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capfd.readouterr()
        return int(left.value.code or 0), out.splitlines(), err.splitlines()

    return call


def test_our_files_pass_with_a_line_each(check: Called) -> None:
    files = sorted(FOLDER.glob("*.yaml"))
    status, out, err = check(*files)
    assert (status, err) == (0, [])
    assert [line.partition(": ok: starts a head (")[0] for line in out] == [str(file) for file in files]


def test_all_problems_of_all_files_are_told_and_what_is_fine_is_said(check: Called) -> None:
    text = (FOLDER / "gcp-tpu-v4.yaml").read_text()
    Path("one.yaml").write_text(
        text.replace("acceleratorType: v4-8", "acceleratorType: v4-9").replace("TPU: 4", "TPU: 3")
    )
    Path("two.yaml").write_text(text.replace("max_workers: 2 # slices", "max_worker: 2 # slices"))
    status, out, err = check("one.yaml", FOLDER / "local.yaml", "two.yaml", "tow.yaml")
    assert status == 2
    assert len(out) == 1
    assert [line.split(": ")[:3] for line in err] == [
        ["convscale", "one.yaml", "available_node_types.v4-8.node_config.acceleratorType"],
        ["convscale", "one.yaml", "available_node_types.v4-8.resources.TPU"],
        ["convscale", "two.yaml", "max_worker"],
        ["convscale", "tow.yaml", "no such file; did you mean two.yaml?"],
    ]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "convscale: bad.yaml: empty; allowed: a cluster file for ray up; start from one of clusters/*.yaml"),
        (b"# only words\n", "convscale: bad.yaml: empty; "),
        (b"cluster_name: a\nprovider: {type: local\nauth: 1\n", "convscale: bad.yaml:3:"),
        (b"cluster_name: a\ncluster_name: b\n", "convscale: bad.yaml:2:1: key 'cluster_name' is given twice"),
        (b"cluster_name:\n\t- a\n", "convscale: bad.yaml:2:1: "),
        (b"\xff\xfe\x00", "convscale: bad.yaml: not text (byte 0 is not UTF-8)"),
        (b"- a\n", "convscale: bad.yaml: a list given; allowed: a section of keys"),
    ],
)
def test_what_is_no_cluster_file(check: Called, content: bytes, line: str) -> None:
    Path("bad.yaml").write_bytes(content)
    status, out, err = check("bad.yaml")
    assert (status, out, len(err)) == (2, [], 1)
    assert err[0].startswith(line)


def test_a_file_that_is_not_there_names_the_near_one(check: Called) -> None:
    Path("cluster.yaml").touch()
    assert check("clutser.yaml") == (2, [], ["convscale: clutser.yaml: no such file; did you mean cluster.yaml?"])
    assert check("x")[2] == ["convscale: x: no such file; name a cluster file, such as clusters/local.yaml"]


def test_a_folder(check: Called) -> None:
    status, _, err = check(FOLDER)
    assert status == 2
    assert err[0].startswith(
        f"convscale: {FOLDER}: a folder; name a cluster file, such as {FOLDER}/gcp-tpu-v4-pod.yaml"
    )


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_file_without_permission(check: Called) -> None:
    Path("closed.yaml").touch(mode=0o000)
    assert check("closed.yaml")[2] == ["convscale: closed.yaml: Permission denied; mend that, and start again"]


def test_a_file_below_a_file(check: Called) -> None:
    Path("cluster.yaml").touch()
    assert check("cluster.yaml/x") == (
        2, [], ["convscale: cluster.yaml/x: Not a directory; mend that, and start again"]
    )  # fmt: skip


def test_no_file_at_all(check: Called) -> None:
    status, _, err = check()
    assert (status, len(err)) == (2, 1)
    assert "FILE" in err[0]


def test_a_check_imports_no_torch_and_mistakes_of_yaml_not_even_ray(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("a: [")
    program = """
import sys
from pathlib import Path
from search.cluster_cli import judge
judge(Path(sys.argv[1]))
assert "ray" not in sys.modules
assert judge(Path(sys.argv[2])) [0] == []
assert not {"torch", "mlflow", "optuna"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", program, tmp_path / "bad.yaml", FOLDER / "local.yaml"], check=True)
