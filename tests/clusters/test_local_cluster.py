"""clusters/local.yaml for real: three machines over SSH (all of them this one), a study, and all of it down again."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from search.ledger import read_ledger
from search.state import StudyState
from tests.clusters.machines import LACKING, ROOT, Machines, run
from tests.search.fleets import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(LACKING), reason=f"{' and '.join(LACKING)} not installed: .ci/run installs them, as root"),
]
# 127.0.0.1 is none of them: Ray takes it for "this machine", and announces another address
ADDRESSES: Final = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
STUDY: Final = """
name: tiny
data: {source: digits, image_size: 8, augment: shift}
model: {variants: [F0], width: 0.0625, group_size: 8, stem: small}
budgets: [5e8 FLOPs]
epochs: {min: 0.01, max: 8}
learning_rate: {base: 0.8, min: 0.8, max: 1.6}
search: {sampler: grid}
training: {batch_size: 16, precision: float32}
compute: {device: cpu, slices: 2, cores_per_slice: 1}
tracking: {uri: "http://127.0.0.1:MLFLOW"}
storage: STORAGE
"""
REPORT: Final = """
import json, time, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
import search
ray.init("auto", log_to_driver=False)
end = time.monotonic() + 300
while (alive := sum(node["Alive"] for node in ray.nodes())) < NODES:
    assert time.monotonic() < end, alive
    time.sleep(0.1)

@ray.remote(num_cpus=1)
def trainables_of():
    import trainables
    return trainables.__file__

found = {
    node["NodeManagerAddress"]: ray.get(
        trainables_of.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
    )
    for node in ray.nodes()
}
end = time.monotonic() + 60
while (free := ray.available_resources().get("CPU")) != (whole := ray.cluster_resources()["CPU"]):
    assert time.monotonic() < end, (free, whole)
    time.sleep(0.1)
print("REPORT", json.dumps({"search": search.__file__, "trainables": found}))
"""


@dataclass
class Cluster:
    """What a user of the cluster has: its file, a folder to work in, and the environment with its token."""

    machines: Machines
    file: Path
    work: Path
    env: dict[str, str]

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.machines.ports[1]}"

    def without_token(self) -> dict[str, str]:
        return {key: value for key, value in self.env.items() if key != "RAY_AUTH_TOKEN_PATH"}

    def submit(self, *entry: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        submit = ["ray", "job", "submit", "--address", self.dashboard, "--working-dir", ".", "--"]
        return run(*submit, *entry, cwd=self.work, env=self.env if env is None else env)

    def report(self) -> dict[str, Any]:
        """Where code comes from on every node, as a job of the user's finds it; all cores are free after it."""
        done = self.submit("python", "report.py")
        assert done.returncode == 0, done.stdout
        line = next(line for line in done.stdout.splitlines() if line.startswith("REPORT "))
        found: dict[str, Any] = json.loads(line.removeprefix("REPORT "))
        return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Machines(ADDRESSES) as machines:
        env = machines.laptop()
        token = Path(env["HOME"]) / ".convscale" / "token"
        token.parent.mkdir()
        token.touch(mode=0o600)
        token.write_text(f"{os.urandom(32).hex()}\n")
        file = machines.fill_in(ROOT / "clusters" / "local.yaml")
        checked = run("convscale", "cluster", "check", file, cwd=ROOT, env=env)
        assert checked.stdout == f"{file}: ok: starts a head (127.0.0.2) and 2 workers, over SSH\n"

        up = run("ray", "up", "--no-config-cache", "-y", file, cwd=ROOT, env=env)
        assert up.returncode == 0, up.stdout
        work = machines.folder / "work"
        for room in ("models", "clusters", "trainables", "search"):
            shutil.copytree(ROOT / room, work / room, ignore=shutil.ignore_patterns("__pycache__"))
        study = STUDY.replace("MLFLOW", str(machines.ports[2])).replace("STORAGE", str(machines.folder / "store"))
        (work / "tiny.yaml").write_text(study)
        (work / "report.py").write_text(REPORT.replace("NODES", str(len(ADDRESSES))))
        yield Cluster(machines, file, work, env | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)})


def test_a_study_is_submitted_and_its_results_come_back(cluster: Cluster) -> None:
    done = cluster.submit("convscale", "search", "tiny.yaml", "--address", "auto")
    assert done.returncode == 0, done.stdout
    assert "Best cell of each budget" in done.stdout

    folder = cluster.machines.folder / "store" / "tiny" / "run-1"
    state = StudyState.of(read_ledger(str(folder)))
    assert state.ended
    assert [trial.outcome for trial in state.trials.values()] == ["finished"] * 2
    assert len((folder / "results.csv").read_text().splitlines()) == 3
    assert (folder / "optuna.db").exists()

    import mlflow

    client = mlflow.MlflowClient(f"http://127.0.0.1:{cluster.machines.ports[2]}")
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert {run.data.tags["trial"] for run in runs if "trial" in run.data.tags} == set(state.trials)


def test_every_node_runs_the_code_that_was_submitted_and_has_all_its_cores_free(cluster: Cluster) -> None:
    report = cluster.report()
    assert set(report["trainables"]) == set(ADDRESSES)
    assert all("/working_dir_files/_ray_pkg_" in path for path in (report["search"], *report["trainables"].values()))


@pytest.mark.parametrize("wrong", [{"RAY_AUTH_TOKEN": "ab" * 32}, {"RAY_AUTH_MODE": "disabled"}])
def test_no_job_is_taken_with_a_wrong_token_or_none(cluster: Cluster, wrong: dict[str, str]) -> None:
    refused = cluster.submit("touch", str(cluster.work / "done"), env=cluster.without_token() | wrong)
    assert refused.returncode != 0
    assert "Authentication" in refused.stdout, refused.stdout
    assert not (cluster.work / "done").exists()


def test_no_search_joins_with_a_wrong_token(cluster: Cluster) -> None:
    address = f"{ADDRESSES[0]}:{cluster.machines.ports[0]}"
    env = cluster.without_token() | {"RAY_AUTH_TOKEN": "ab" * 32}
    done = run("convscale", "search", "tiny.yaml", "--fresh", "--address", address, cwd=cluster.work, env=env)
    assert done.returncode == 2, done.stdout
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"convscale: --address {address}: ")


def test_the_pages_are_on_the_loopback_interface_only(cluster: Cluster) -> None:
    pages = set(cluster.machines.ports[1:3])
    listening = [each.laddr for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    assert {place.port for place in listening} >= pages
    assert {place.ip for place in listening if place.port in pages} <= {"127.0.0.1", "::ffff:127.0.0.1"}


def test_what_a_cluster_keeps_is_for_its_user_alone(cluster: Cluster) -> None:
    for home in cluster.machines.homes.values():
        (folder,) = (home / "t").glob("convscale-*")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((home / ".convscale" / "cluster-token").stat().st_mode) == 0o600


def test_down_ends_this_cluster_and_nothing_else_and_leaves_the_installed_code_alone(cluster: Cluster) -> None:
    machines = cluster.machines
    # a Ray process of another cluster, by all that `ray stop` goes by
    (machines.folder / "raylet").symlink_to(str(shutil.which("sleep")))
    other = subprocess.Popen([machines.folder / "raylet", "1000"], env={"CONVSCALE_CLUSTER": "/tmp/convscale-another"})
    try:
        assert psutil.Process(other.pid).name() == "raylet"
        assert machines.processes()
        down = run("ray", "down", "-y", cluster.file, cwd=ROOT, env=cluster.env)
        assert down.returncode == 0, down.stdout
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
    until(lambda: not machines.processes(), "everything to end")
    for home in machines.homes.values():
        assert list((home / "t").iterdir()) == []
        assert (home / ".bashrc").read_text() == machines.bashrc
        assert {path.name for path in home.iterdir()} <= {".bashrc", ".cache", ".config", "convscale", "t"}
    assert (Path(cluster.env["HOME"]) / ".convscale" / "token").exists()
    for port in machines.ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((ADDRESSES[0] if port == machines.ports[0] else "127.0.0.1", port), timeout=10)


def test_the_machines_let_nobody_in_once_the_tests_were_killed(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from tests.clusters.machines import Machines
with Machines(["127.0.0.5"], Path(sys.argv[1])) as machines:
    print(machines.port, flush=True)
    input()
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        port = int(tests.stdout.readline())
        try:
            assert listens("127.0.0.5", port)
        finally:
            tests.kill()
    until(lambda: not listens("127.0.0.5", port), "the SSH server to end", patience_s=10)


def listens(address: str, port: int) -> bool:
    """Whether somebody does."""
    try:
        socket.create_connection((address, port), timeout=10).close()
    except ConnectionRefusedError:
        return False
    return True
