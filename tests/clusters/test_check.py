"""The check of cluster files: ours pass it, and each kind of mistake gives its one line."""

from __future__ import annotations

import copy
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, NoReturn

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from clusters.check import check
from clusters.tpu import Topology

pytestmark = pytest.mark.filterwarnings("default")  # Ray's own warnings are not ours
FOLDER: Final = Path(__file__).resolve().parent.parent.parent / "clusters"
FILES: Final = {path.name: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yaml"))}
LOCAL, GCP, POD = "local.yaml", "gcp-tpu-v4.yaml", "gcp-tpu-v4-pod.yaml"
NODE: Final = "available_node_types.v4-8"
CONFIG: Final = f"{NODE}.node_config"
GONE: Final = object()
N, C = NODE, CONFIG


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that reaches for a network fails."""

    def refuse(*_: object) -> NoReturn:
        raise AssertionError("a check must contact nobody")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def changed(name: str, *changes: tuple[Any, Any]) -> dict[str, Any]:
    """One of our files with values at dotted paths set, or taken out (GONE)."""
    document: dict[str, Any] = copy.deepcopy(FILES[name])
    for path, value in changes:
        section: Any = document
        *above, last = path.split(".") if isinstance(path, str) else [path]
        for part in above:
            section = section[int(part) if isinstance(section, list) else part]
        key = int(last) if isinstance(section, list) else last
        if value is GONE:
            del section[key]
        else:
            section[key] = value
    return document


def problem(name: str, *changes: tuple[Any, Any]) -> str:
    """The one problem of a changed file."""
    (line,) = check(changed(name, *changes)).problems
    assert "\n" not in line
    return line


def test_the_three_files_are_there() -> None:
    assert list(FILES) == [POD, GCP, LOCAL]


@pytest.mark.parametrize(
    ("name", "starts"),
    [
        (LOCAL, "a head (192.0.2.10) and 2 workers, over SSH"),
        (GCP, "a head (n2-standard-8) and 2 x v4-8 (2 hosts, 8 chips, 16 cores)"),
        (POD, "a head (n2-standard-8) and 1 x v4-32 (4 hosts, 16 chips, 32 cores)"),
    ],
)
def test_our_files_pass_and_it_is_said_what_they_start(name: str, starts: str) -> None:
    verdict = check(FILES[name])
    assert verdict.problems == ()
    assert verdict.starts == starts
    assert any("set provider" in line for line in verdict.to_do)


def test_nothing_is_left_to_do_once_all_is_filled_in(tmp_path: Path) -> None:
    (tmp_path / "token").touch()
    mounts = {"~/.convscale/cluster-token": str(tmp_path / "token")}
    assert check(changed(GCP, ("provider.project_id", "mine"), ("file_mounts", mounts))).to_do == ()


def test_a_key_that_is_not_there_is_left_to_do() -> None:
    assert "make /none/key, which auth.ssh_private_key names" in (
        check(changed(LOCAL, ("auth.ssh_private_key", "/none/key"))).to_do
    )


def test_what_is_to_be_copied_and_is_not_there_is_left_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check(FILES[GCP]).to_do == (
        "set provider.project_id",
        "make ~/.convscale/token, which file_mounts copies",
        "go to the folder that has pyproject.toml, which file_mounts copies: the root of the repository",
    )


@pytest.mark.parametrize("name", list(FILES))
def test_our_files_open_with_how_to_check_start_submit_watch_and_take_down(name: str) -> None:
    text = (FOLDER / name).read_text()
    comment = text[: text.index("\ncluster_name")]
    assert all(line.startswith("#") for line in comment.splitlines())
    for command in (f"cluster check clusters/{name}", f"ray up --no-config-cache -y clusters/{name}",
                    "ray job submit --address http://127.0.0.1:8265 --working-dir . -- convscale search",
                    f"ray attach clusters/{name} -p 8265 -p 5000", f"ray down -y clusters/{name}"):  # fmt: skip
        assert command in comment


@pytest.mark.parametrize(
    ("name", "changes", "line"),
    [
        # TPU v4's arithmetic
        (GCP, {f"{C}.acceleratorType": "v4-9"},
         f"{C}.acceleratorType: 'v4-9' given; allowed: v4-8 to v4-4096, "
         "which count cores (two a chip, four chips a host); use v4-8 or v4-16"),
        (GCP, {f"{C}.acceleratorType": "V4-8"},
         f"{C}.acceleratorType: 'V4-8' given; write it as Google does: v4-8"),
        (GCP, {f"{C}.acceleratorType": "v5p-8"},
         f"{C}.acceleratorType: 'v5p-8' given; allowed: v4-8 to v4-4096"),
        (GCP, {f"{N}.resources.TPU": 3},
         f"{N}.resources.TPU: 3 given; a TPU v4 host has 4 chips; set it to 4"),
        (GCP, {f"{N}.resources.TPU": GONE},
         f"{N}.resources.TPU: missing; a TPU v4 host has 4 chips; set it to 4"),
        (POD, {"available_node_types.v4-32.resources.TPU": 16},
         "available_node_types.v4-32.resources.TPU: 16 given; a "
         "TPU v4 host has 4 chips, also in a slice of several; set it to 4"),
        (GCP, {f"{N}.resources.TPU-v4-16-head": 1},
         f"{N}.resources.TPU-v4-16-head: not of this slice; Ray adds "
         "TPU-v4-8-head by itself; remove it"),
        (GCP, {f"{N}.resources.TPU-v4-8-head": 2}, f"{N}.resources.TPU-v4-8-head: 2 given; a slice has 1"),
        (GCP, {"available_node_types.head.resources.TPU-v4-8-head": 1},
         "available_node_types.head.resources.TPU-v4-8-head: "
         "given, but node_config has no acceleratorType"),
        (GCP, {f"{C}.acceleratorConfig": {"type": "V4", "topology": "2x2x2"}},
         f"{C}: acceleratorType v4-8 has 4 "
         "chips, acceleratorConfig.topology 2x2x2 has 8 (v4-16); allowed: one of them"),
        (GCP, {f"{C}.acceleratorConfig": {"type": "V4", "topology": "2x2x1"}},
         "of the same size; Ray allows one"),
        (GCP, {f"{C}.acceleratorType": GONE, f"{C}.acceleratorConfig": {"type": "V4", "topology": "2x2x3"}},
         f"{C}.acceleratorConfig.topology: topology '2x2x3' given; allowed: AxBxC"),
        (GCP, {f"{C}.acceleratorType": GONE, f"{C}.acceleratorConfig": {"type": "v4", "topology": "2x2x1"}},
         f"{C}.acceleratorConfig.type: 'v4' given; allowed: V4"),
        (GCP, {f"{C}.acceleratorType": GONE, f"{C}.acceleratorConfig": {"topology": "2x2x1"}},
         f"{C}.acceleratorConfig: {{'topology': '2x2x1'}} given; allowed: a type and a topology"),
        (GCP, {f"{C}.machineType": "n2-standard-8"}, "machineType and a TPU's accelerator given"),
        (GCP, {f"{C}.runtimeVersion": GONE},
         f"{C}.runtimeVersion: missing; Google makes no TPU without; set it to "
         "tpu-ubuntu2204-base"),
        (GCP, {f"{C}.runtimeVersion": "tpu-ubuntu2204-bas"}, "use tpu-ubuntu2204-base"),
        (GCP, {f"{C}.runtimeVersion": "v2-alpha-tpuv5"}, "'v2-alpha-tpuv5' given; allowed on TPU v4"),
        (GCP, {f"{C}.runtimeVersion": 4}, f"{C}.runtimeVersion: 4 given; allowed on TPU v4"),
        (GCP, {f"{C}.schedulingConfig": {"spot": "yes"}},
         f"{C}.schedulingConfig.spot: 'yes' given; allowed: true or false"),
        (GCP, {f"{N}.resources": {"tpu": 4}}, f"{N}.resources.tpu: unknown to Ray; did you mean TPU?"),
        (GCP, {"available_node_types.head.resources": {"Cpu": 2}},
         "available_node_types.head.resources.Cpu: unknown to Ray; did you mean CPU?"),
        (GCP, {f"{C}.schedulingConfig": {"spot": True, "reserved": True}},
         f"{C}.schedulingConfig: spot and reserved given; allowed: one of them"),
        (GCP, {f"{C}.schedulingConfig": "spot"}, f"{C}.schedulingConfig: 'spot' given; allowed: a section"),
        (GCP, {"provider.availability_zone": "us-central1-a"},
         "provider.availability_zone: 'us-central1-a' given; TPU v4 is "
         "in us-central2-b only"),
        (GCP, {"provider.region": GONE},
         "provider.region: missing; TPU v4 is in us-central2-b only; set it to us-central2"),
        (GCP, {"head_node_type": "v4-8"}, "head_node_type: 'v4-8' given, a TPU, which no head may be"),
        # counts
        (GCP, {f"{N}.min_workers": 3, "max_workers": 5},
         f"{N}.min_workers: 3 given, more than its max_workers (2)"),
        (GCP, {f"{N}.min_workers": -1}, f"{N}.min_workers: -1 given; allowed: 0 or more"),
        (GCP, {"max_workers": 1},
         "max_workers: 1 given, fewer than the min_workers of all nodes (2); raise it"),
        (GCP, {"max_workers": "two"}, "max_workers: 'two' given; allowed: a whole number; change it"),
        (LOCAL, {"min_workers": "two"}, "min_workers: 'two' given; allowed: a whole number, 0 or more; change it"),
        (GCP, {"max_workers": -1}, "max_workers: -1 given; allowed: 0 or more; change it"),
        # keys, wherever they are
        (GCP, {"max_worker": 2}, "max_worker: unknown key; did you mean max_workers?"),
        (GCP, {"provider.avaliability_zone": "us-central2-b"},
         "provider.avaliability_zone: unknown key; did you mean "
         "availability_zone?"),
        (GCP, {f"{N}.min_worker": 1}, f"{N}.min_worker: unknown key; did you mean min_workers?"),
        (GCP, {f"{C}.runtimeVersoin": "tpu-ubuntu2204-base", f"{C}.runtimeVersion": GONE},
         f"{C}.runtimeVersoin: unknown key; did you mean runtimeVersion?"),
        (GCP, {f"{C}.schedulingConfig": {"spott": True}},
         f"{C}.schedulingConfig.spott: unknown key; did you mean "
         "spot?"),
        (GCP, {"available_node_types.head.node_config.disk": []},
         "node_config.disk: unknown key; did you mean disks?"),
        (GCP, {"available_node_types.head.node_config": {"machinetype": "n2-standard-8"}},
         "node_config.machinetype: unknown key; did you mean machineType?"),
        (GCP, {"available_node_types.head.node_config.disks.0.initializeParams": {"diskSizeGB": 100}},
         "disks[0].initializeParams.diskSizeGB: unknown key; did you mean diskSizeGb?"),
        (GCP, {"available_node_types.head.node_config.disks.0.autodelete": True},
         "disks[0].autodelete: unknown key; did you mean autoDelete?"),
        (GCP, {"available_node_types.head.node_config.disks": {"boot": True}},
         "node_config.disks: {'boot': True} given; allowed: a list of sections"),
        (GCP, {"available_node_types.head.node_config.machineType": None},
         "node_config.machineType: None given; allowed: text"),
        (GCP, {"available_node_types.head.node_config": {"sourceInstanceTemplate": "global/instanceTemplates/x"}},
         "neither machineType nor acceleratorType; add machineType"),  # so does Ray
        (GCP, {"available_node_types.head.node_config": {}},
         "neither machineType nor acceleratorType; add machineType"),
        (GCP, {"auth.ssh_usr": "me", "auth.ssh_user": GONE},
         "auth.ssh_usr: unknown key; did you mean ssh_user?"),
        (LOCAL, {"provider.worker_ip": []}, "provider.worker_ip: unknown key; did you mean worker_ips?"),
        (LOCAL, {"rsync_excludes": []}, "rsync_excludes: unknown key; did you mean rsync_exclude?"),
        (LOCAL, {"nonsense": 1}, "nonsense: unknown key; remove it; allowed: cluster_name, "),
        (GCP, {4: "x"}, "the file: key 4 given; allowed: text; write it in quotes"),
        (GCP, {"available_node_types": {4: {}}}, "available_node_types: key 4 given; allowed: text"),
        (GCP, {f"{N}.resources": {4: 1}}, f"{N}.resources: key 4 given; allowed: text"),
        (GCP, {"setup_commands": [{True: 1}]}, "setup_commands[0]: key True given; allowed: text"),
        # what is missing, or of another kind
        (LOCAL, {"file_mounts.x": None}, "file_mounts.x: None given; allowed: a path, as text"),
        (GCP, {"cluster_name": "a" * 38}, "opening with a letter, 37 at most"),
        (LOCAL, {"cluster_name": "a/b"}, "cluster_name: 'a/b' given; allowed: letters, digits"),
        (GCP, {"available_node_types.V 4": {"resources": {}, "node_config": {"machineType": "n2-standard-8"}}},
         "available_node_types: 'V 4' given; allowed on Google Cloud, where it is a label: small letters"),
        (GCP, {"provider": {"type": "aws", "region": "us-west-2"}, "available_node_types": {
            "head": {"resources": {}, "node_config": {"machineType": "n2-standard-8"}}}},
         "head.node_config.machineType: a key of Google Cloud's, but provider.type is aws"),
        *((LOCAL, {"provider.head_ip": given}, f"provider.head_ip: {given!r} given; allowed: an IPv4 address")
          for given in ("head", "localhost", "me@192.0.2.1", "192.0.2.1:22", "10.0.0.300")),
        (LOCAL, {"provider.head_ip": 7}, "provider.head_ip: 7 given; allowed: text; change it"),
        (LOCAL, {"provider.worker_ips": ["192.0.2.11", 12]}, "provider.worker_ips[1]: 12 given; allowed: an IPv4"),
        (LOCAL, {"provider.head_ip": "127.0.0.1"}, "127.0.0.1 given, by which every machine means itself"),
        (GCP, {"cluster_name": GONE}, "cluster_name: missing; add it"),
        (GCP, {"cluster_name": "My Cluster"},
         "cluster_name: 'My Cluster' given; allowed on Google Cloud: small letters"),
        (GCP, {"provider.type": "gpc"},
         "provider.type: 'gpc' given; allowed: aliyun, aws, azure, gcp, local, vsphere; use gcp"),
        (GCP, {"head_node_type": "haed"},
         "head_node_type: 'haed' given; allowed: head, v4-8; did you mean head?"),
        (GCP, {"setup_commands": "make"}, "setup_commands: 'make' given; allowed: a list; change it"),
        (GCP, {f"{N}.resources": GONE}, f"{N}.resources: missing; add it"),
        (GCP, {"available_node_types.head.node_config.scheduling": {"preemptible": True}},
         "a head that may be taken away"),
        (LOCAL, {"provider.head_ip": GONE}, "provider.head_ip: missing; add the address"),
        (LOCAL, {"provider.worker_ips": ["192.0.2.1", "192.0.2.2", "192.0.2.1"]},
         "provider.worker_ips: 192.0.2.1 given 2 times; keep one of them"),
        (LOCAL, {"provider.worker_ips": ["192.0.2.10"]},
         "provider.worker_ips: 192.0.2.10 given, the head's"),
        (LOCAL, {"auth.ssh_user": GONE}, "auth.ssh_user: missing; add the user"),
    ],
)  # fmt: skip
def test_each_mistake_gives_its_one_line(name: str, changes: dict[Any, Any], line: str) -> None:
    assert line in problem(name, *changes.items())


@pytest.mark.parametrize("name", list(FILES))
@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "--dashboard-host 0.0.0.0 given; allowed: 127.0.0"),
        ("--host 127.0.0.1", "--host 0.0.0.0", "--host 0.0.0.0 given; allowed: 127.0.0.1"),
        ("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "RAY_AUTH_MODE=disabled given; allowed: token"),
        ("RAY_AUTH_MODE=token", "", "ray start without RAY_AUTH_MODE; add export RAY_AUTH_MODE=token before it"),
        ("RAY_AUTH_TOKEN_PATH=", f"RAY_AUTH_TOKEN={'a1' * 32} RAY_AUTH_TOKEN_PATH=", "has what looks like a secret"),
        ("ulimit -n 65536", "export HF_TOKEN=hunter2", "has what looks like a secret"),
        ("ulimit -n 65536", f"echo {'a1' * 32} > token", "has what looks like a token"),
        ("ulimit -n 65536", "curl -H 'Authorization: Bearer hunter2' x", "has what looks like a secret"),
        ("ulimit -n 65536", "login --user me --password hunter2", "has what looks like a secret"),
        ("ulimit -n 65536", "export AWS_SECRET_ACCESS_KEY=hunter2", "has what looks like a secret"),
        ("ulimit -n 65536", "git clone https://me:hunter2@example.org/x", "has what looks like a password"),
        ("ulimit -n 65536", "jupyter lab --ip=0.0.0.0 &", "--ip 0.0.0.0 given; allowed: 127.0.0.1"),
        ("ulimit -n 65536", "tensorboard --host '::' &", "--host :: given; allowed: 127.0.0.1"),
        ("ray start", "ray  start --dashboard-host=0.0.0.0", "--dashboard-host 0.0.0.0 given"),
        ("RAY_AUTH_TOKEN_PATH=", "X=", "wants its token in ~/.ray/auth_token, which file_mounts does not copy"),
        (".convscale/cluster-token", "token", "wants its token in ~/token, which file_mounts does not copy; add"),
        ("--autoscaling-config=~/ray_bootstrap_config.yaml", "", "without --autoscaling-config, so that no worker is"),
        ("--head", "", "ray start without --head; add it"),
    ],
)  # fmt: skip
def test_a_cluster_that_is_open_to_others_is_refused(name: str, old: str, new: str, line: str) -> None:
    section = "head_start_ray_commands"
    commands = [command.replace(old, new, 1) for command in FILES[name][section]]
    assert commands != FILES[name][section]
    found = problem(name, (section, commands))
    assert found.startswith(f"{section}[")
    assert line in found
    assert "hunter2" not in found
    assert "a1a1" not in found


@pytest.mark.parametrize("name", list(FILES))
@pytest.mark.parametrize("section", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_rays_own_start_commands_are_refused(name: str, section: str) -> None:
    assert problem(name, (section, GONE)).startswith(f"{section}: missing; Ray's own would start it without a token")


@pytest.mark.parametrize("name", list(FILES))
@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (":6379", ":6380", "--address $RAY_HEAD_IP:6380 given, but the head's --port is 6379; make them one"),
        ("--address=", "--adress=", 'ray start without --address; add --address="$RAY_HEAD_IP:6379"'),
    ],
)
def test_workers_that_would_not_find_the_head_are_refused(name: str, old: str, new: str, line: str) -> None:
    section = "worker_start_ray_commands"
    commands = [command.replace(old, new, 1) for command in FILES[name][section]]
    assert problem(name, (section, commands)) == f"{section}[1]: {line}"


@pytest.mark.parametrize("commands", [[], [" "]])
def test_start_commands_that_start_nothing_are_refused(commands: list[str]) -> None:
    line = problem(LOCAL, ("worker_start_ray_commands", commands))
    assert line == "worker_start_ray_commands: empty, so that nothing starts; take it from clusters/*.yaml"


@pytest.mark.parametrize("name", [GCP, POD])
def test_whatever_runs_on_a_tpu_host_finds_the_library_of_the_interpreter(name: str, tmp_path: Path) -> None:
    """torch_xla wants libpython, which uv's interpreter has in its own `lib`; drivers and workers inherit it."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    file = FILES[name]
    for command in (file["head_start_ray_commands"][1], file["worker_start_ray_commands"][1],
                    file["worker_setup_commands"][-1]):  # fmt: skip
        before = re.split(r"ulimit|\.venv/bin/python -c 'import torch_xla'", command.partition(";")[2])[0]
        said = subprocess.run(
            ["bash", "-c", f'{before} echo "$LD_LIBRARY_PATH"'],
            cwd=tmp_path, env={**os.environ, "LD_LIBRARY_PATH": "/theirs"}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert said.stdout == f"{sys.base_prefix}/lib:/theirs\n"
    assert file["worker_setup_commands"][-1].endswith("; .venv/bin/python -c 'import torch_xla'")


def test_a_key_in_the_file_is_refused() -> None:
    credentials = {"type": "credentials_token", "credentials": "anything"}
    line = problem(GCP, ("provider.gcp_credentials", credentials))
    assert line.startswith("provider.gcp_credentials.credentials: has what looks like a secret")
    assert "anything" not in line


def test_what_only_names_a_secret_is_none() -> None:
    setup = [
        "git checkout 29243c5d0e1f2a3b4c5d6e7f8091a2b3c4d5e6f7",
        'export HF_TOKEN="$(cat ~/.hf)" WANDB_API_KEY=$KEY',
        "export HF_HUB_DISABLE_IMPLICIT_TOKEN=1",
        f"echo '{'0a' * 32}  x.tar' | sha256sum --check",
        f"echo '{'0a' * 16}  x.tar' | md5sum --check",
        'login --password "$PASSWORD" https://me:$PASSWORD@example.org',
        'curl -H "Authorization: Bearer $(cat ~/.hf)" https://example.org/x',
    ]
    mounts = FILES[LOCAL]["file_mounts"] | {"~/.hf/token": "secrets/hf-token"}
    changes = [("setup_commands", setup), ("file_mounts", mounts), ("cluster_name", "c0ffee" * 6)]
    assert check(changed(LOCAL, *changes)).problems == ()


@pytest.mark.parametrize("version", ["tpu-vm-v4-pt-2.0", "tpu-vm-tf-2.16.1-pod-pjrt", "tpu-ubuntu2404-base"])
def test_other_software_for_tpu_v4_is_not_refused(version: str) -> None:
    assert check(changed(GCP, (f"{CONFIG}.runtimeVersion", version))).problems == ()


@pytest.mark.parametrize(
    "changes", [[("cluster_name", "a" * 37)], [("provider.worker_ips", ["127.0.0.2", "10.0.0.3"])]]
)
def test_what_just_passes(changes: list[tuple[str, Any]]) -> None:
    name = LOCAL if "provider" in changes[0][0] else GCP
    assert check(changed(name, *changes)).problems == ()


def test_what_ray_alone_knows_is_told_in_its_words() -> None:
    assert problem(LOCAL, ("docker", {"image": "ray"})).startswith("Ray refuses it: ")


@pytest.mark.parametrize(
    "document", [None, [], "text", 3, {}, {"provider": None}, {"cluster_name": "a", "provider": []}]
)
def test_what_is_no_cluster_file_is_refused_without_a_traceback(document: object) -> None:
    problems = check(document).problems
    assert problems
    assert all("\n" not in line for line in problems)


def test_all_problems_are_told_at_once() -> None:
    problems = check(
        changed(GCP, (f"{NODE}.resources.TPU", 3), (f"{CONFIG}.acceleratorType", "v4-9"), ("provider.project", "mine"))
    ).problems
    assert len(problems) == 3


@given(cores=st.integers(-8, 5000))
@settings(max_examples=40, deadline=None)
def test_a_slice_passes_if_and_only_if_there_is_one_of_that_many_cores(cores: int) -> None:
    name = f"v4-{cores}"
    try:
        exists = Topology.of_accelerator(name).cores == cores
    except ValueError:
        exists = False
    verdict = check(changed(GCP, (f"{CONFIG}.acceleratorType", name)))
    assert (verdict.problems == ()) is exists
    if exists:
        assert f"2 x {name} ({2 * cores // 8} hosts, {cores} chips, {2 * cores} cores)" in verdict.starts


SCRAPS: Final = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@given(name=st.sampled_from(list(FILES)), data=st.data())
@settings(max_examples=80, deadline=None)
def test_anything_in_the_place_of_anything_is_no_crash(name: str, data: st.DataObject) -> None:
    document = copy.deepcopy(FILES[name])
    section: Any = document
    while True:
        key = data.draw(st.sampled_from(list(section) if isinstance(section, dict) else range(len(section))))
        if not isinstance(section[key], (dict, list)) or not section[key] or data.draw(st.booleans()):
            break
        section = section[key]
    if isinstance(section, dict) and data.draw(st.booleans()):
        section[data.draw(st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=5))] = section.pop(key)
    else:
        section[key] = data.draw(SCRAPS)
    assert all(line and line.splitlines() == [line] for line in check(document).problems)
