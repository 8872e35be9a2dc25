"""How a cluster of one's own machines is ended: which `ray` runs for `ray down`, and what is left of what was there."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Final

import pytest
import yaml

from clusters import stop

LOCAL: Final = Path(__file__).resolve().parent.parent.parent / "clusters" / "local.yaml"
DOWN: Final = "source ~/.bashrc; export OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore && (ray stop)"
"""What `ray down` has the head's shell run."""
OURS: Final = '{"provider": {}, "auth": {"ssh_user": "me"}, "head_start_ray_commands": ["CONVSCALE_CLUSTER"]}'
OTHERS: Final = '{"provider": {"worker_ips": ["192.0.2.1"]}, "auth": {"ssh_user": "me"}}'


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a head's user, who has a shell's settings and two programs called `ray`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CONVSCALE_TMPDIR", str(tmp_path / "tmp"))
    for folder, said in (("convscale/clusters/bin", "this cluster"), ("bin", "every ray")):
        (tmp_path / folder).mkdir(parents=True)
        program = tmp_path / folder / "ray"
        program.write_text(f"#!/bin/sh\necho {said}\n")
        program.chmod(0o755)
    (tmp_path / ".bashrc").write_text("alias ll='ls -l' # \u00e9\n")
    return tmp_path


def start_of_the_head(home: Path) -> None:
    """Run what the start commands do to ~/.bashrc, twice, as two times `ray up`."""
    (command,) = [line for line in yaml.safe_load(LOCAL.read_text())["head_start_ray_commands"] if ".bashrc" in line]
    for _ in range(2):
        subprocess.run(["bash", "-c", command], check=True, env={**os.environ, "HOME": str(home)})


@pytest.mark.parametrize(
    ("command", "configuration", "runs"),
    [
        (DOWN, OURS, "this cluster"),
        (DOWN, OTHERS, "every ray"),
        (DOWN, None, "every ray"),
        ("source ~/.bashrc; ray stop", OURS, "every ray"),
    ],
)
def test_ray_down_of_this_cluster_and_nothing_else_is_led_here(
    home: Path, command: str, configuration: str | None, runs: str
) -> None:
    start_of_the_head(home)
    if configuration is not None:
        (home / "ray_bootstrap_config.yaml").write_text(configuration)
    env = {**os.environ, "PATH": f"{home}/bin:{os.environ['PATH']}"}
    said = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, check=True)
    assert said.stdout == f"{runs}\n"


def test_the_whole_stop_leaves_no_token_and_no_line_in_the_shells_settings(home: Path) -> None:
    before = (home / ".bashrc").read_bytes()
    start_of_the_head(home)
    assert (home / ".bashrc").read_bytes().count(b"\n") == 2
    for name in (".convscale/cluster-token", ".convscale/token", "ray_bootstrap_key.pem", "tmp/x"):
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).touch()
    (home / "ray_bootstrap_config.yaml").write_text(OURS)
    stop.main([])
    assert (home / ".bashrc").read_bytes() == before
    assert [path.name for path in (home / ".convscale").iterdir()] == [
        "token"
    ]  # the user's own, if here is where he works
    assert list(home.glob("ray_bootstrap*")) == []


def test_a_start_forgets_nothing(home: Path) -> None:
    start_of_the_head(home)
    stop.main(["--here"])
    assert (home / ".bashrc").read_bytes().count(b"\n") == 2


@pytest.mark.parametrize("configuration", [OTHERS, OURS[:-2]])
def test_what_does_not_tell_this_clusters_workers_is_said_and_keeps_nothing_running(
    home: Path, configuration: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "ray_bootstrap_config.yaml").write_text(configuration)
    stop.folder().mkdir(parents=True)
    stop.main([])
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("does not tell this cluster's workers; they end by themselves within minutes")
    assert second == f"0 processes of {stop.folder()} ended"
    assert not stop.folder().exists()
    assert (home / "ray_bootstrap_config.yaml").exists() is (configuration == OTHERS)


def test_a_process_that_is_another_users_by_now_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    stop._end([os.getpid()], signal.SIGTERM)
