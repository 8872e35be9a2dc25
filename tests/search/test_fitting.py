"""Whether a Ray cluster can train a study, told before anything of it is leased."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest

from clusters.hosts import whole_slices
from clusters.tpu import Topology
from search.cluster import check_slices, cores_of_cluster, device_of_cluster
from search.fitting import cluster_file, cores_of_a_worker, cores_to_come, device_of_study, most_slices
from search.study import Study, StudyError, read_study

PAIR = Topology.parse("v4:2x2x2")


def study(**compute: Any) -> Study:
    text = (
        "name: mini\ndata: {source: digits, image_size: 32}\nbudgets: [1e10 FLOPs]\n"
        "training: {batch_size: 4096, eval_batch_size: 4096}\n"
    )
    return read_study(f"{text}compute: {compute!r}".replace("'", ""), source="mini.yaml")


def node(alive: bool = True, labels: dict[str, str] | None = None, **resources: float) -> dict[str, Any]:
    """A node as Ray describes it; with chips it announces a TPU v4, as a TPU VM does."""
    announced = {"accelerator_type:TPU-V4": 1.0} if "TPU" in resources else {}
    return {
        "Alive": alive,
        "NodeID": secrets.token_hex(4),
        "Resources": {**resources, **announced},
        "Labels": labels or {},
    }


def slice_of(
    name: str,
    hosts: int,
    accelerator: str = "v4-16",
    *,
    chips: float = 4.0,
    shape: str | None = None,
    cpus: float = 240,
) -> list[dict[str, Any]]:
    """The first hosts of a slice, as Ray describes their nodes."""
    return [
        node(
            CPU=cpus,
            TPU=chips,
            labels={
                "ray.io/tpu-slice-name": name,
                "ray.io/tpu-worker-id": str(number),
                "ray.io/tpu-pod-type": accelerator,
                **({"ray.io/tpu-topology": shape} if shape else {}),
            },
        )
        for number in range(hosts)
    ]


@pytest.mark.parametrize(
    ("resources", "device"),
    [
        ({"CPU": 8.0}, "cpu"),
        ({"CPU": 8.0, "GPU": 2.0}, "cuda"),
        ({"GPU": 0.0}, "cpu"),
        ({}, "cpu"),
        ({"CPU": 240.0, "TPU": 4.0, "TPU-v4-8-head": 1.0}, "tpu"),
    ],
)
def test_auto_is_what_the_cluster_has(resources: dict[str, float], device: str) -> None:
    assert device_of_cluster(resources) == device


def test_a_core_of_the_cluster_is_left_for_the_searchs_own_processes() -> None:
    assert cores_of_cluster([node(CPU=8.0), node(False, CPU=64.0), node(GPU=1.0)]) == [0, 7]
    assert cores_of_cluster([]) == []


def test_cores_are_those_of_nodes_that_have_the_device() -> None:
    nodes = [node(CPU=8.0), node(CPU=240.0, TPU=4.0), node(CPU=240.0, TPU=4.0), node(CPU=16.0, GPU=1.0)]
    assert cores_of_cluster(nodes, "tpu") == [240, 239]
    assert cores_of_cluster(nodes, "cuda") == [15]


def test_a_worker_on_a_tpu_host_has_it_for_itself_however_few_hosts_are_there_yet() -> None:
    of = study(device="tpu", accelerator="tpu-v4-16", slices=4)
    assert cores_of_a_worker(of, "tpu", [240, 239]) == 239
    assert cores_of_a_worker(of, "tpu", [0]) == 1
    fewer = study(device="tpu", accelerator="tpu-v4-16", cores_per_slice=16)
    assert cores_of_a_worker(fewer, "tpu", [240, 239]) == 8
    assert cores_of_a_worker(study(device="cpu", slices=2), "cpu", [8]) == 4


def test_a_slice_is_there_when_all_of_its_hosts_are() -> None:
    nodes = [*slice_of("b", 2), *slice_of("a", 2), *slice_of("half", 1), *slice_of("big", 4, "v4-32"), node(CPU=8.0)]
    assert list(whole_slices(nodes, PAIR)) == ["a", "b"]
    assert not whole_slices(slice_of("a", 2, chips=3.0), PAIR)
    assert not whole_slices([{**each, "Alive": False} for each in slice_of("a", 2)], PAIR)


def test_slices_of_one_name_may_have_two_shapes() -> None:
    nodes = [*slice_of("flat", 64, "v4-512", shape="4x4x16"), *slice_of("cube", 64, "v4-512", shape="4x8x8")]
    assert list(whole_slices(nodes, Topology.parse("v4:4x4x16"))) == ["flat"]
    assert list(whole_slices(nodes, Topology.of_accelerator("tpu-v4-512"))) == ["cube"]


def test_where_a_slice_is_one_host_each_host_of_tpu_v4_is_one() -> None:
    one = Topology.parse("v4:2x2x1")
    v5e = {**node(TPU=4.0), "Resources": {"TPU": 4.0, "accelerator_type:TPU-V5LITEPOD": 1.0}}
    assert (
        len(whole_slices([*slice_of("a", 1, "v4-8"), *slice_of("b", 2), node(TPU=4.0), node(TPU=1.0), v5e], one)) == 4
    )


NEEDS = {"CPU": 239.0, "TPU": 4.0}
KIND = "tpu-v4-16 with 239 CPU a host"


def test_a_search_begins_on_the_slices_that_are_there() -> None:
    of = study(device="tpu", accelerator="tpu-v4-16", slices=2)
    both = [*slice_of("a", 2), *slice_of("b", 2)]
    assert check_slices(of, both, NEEDS, "tpu") == (2, [])
    assert check_slices(of, both, NEEDS, "tpu", most=0) == (2, [])  # whatever a file says
    assert check_slices(of, slice_of("a", 2), NEEDS, "tpu") == (
        1,
        [f"1 of 2 slices of {KIND} are there: the study begins on them and takes others as they come"],
    )
    assert check_slices(of, [], NEEDS, "tpu", most=2) == (
        0,
        [f"none of 2 slices of {KIND} is there yet: the study waits for the first"],
    )


@pytest.mark.parametrize(
    ("compute", "nodes", "most", "said"),
    [
        (
            {"slices": 3},
            slice_of("a", 2),
            2,
            f"3 slices of {KIND} asked for, and the cluster can have 2 at most (it has 1 of tpu-v4-16; nodes of 240 "
            "CPU and 4 TPU); lower compute.slices to 2, or start a larger cluster",
        ),
        (
            {"slices": 1},
            slice_of("a", 4, "v4-32"),
            0,
            f"1 slice of {KIND} asked for, and the cluster can have none (it has 1 of tpu-v4-32; nodes of 240 CPU and "
            "4 TPU); set compute.accelerator, workers_per_slice and cores_per_slice to what is there, or start a",
        ),
        (
            {"slices": 1},
            [*slice_of("a", 4, "v4-32"), *slice_of("b", 4, "v4-32")],
            None,
            f"1 slice of {KIND} asked for, and the cluster has none (it has 2 of tpu-v4-32; nodes of 240 CPU and 4 "
            "TPU); start one, or set compute.accelerator, workers_per_slice and cores_per_slice to what is there",
        ),
        (
            {"slices": 1},
            slice_of("a", 2, cpus=96),
            None,
            f"1 slice of {KIND} asked for, and the cluster has none (it has 1 of tpu-v4-16; nodes of 96 CPU and 4 TPU)",
        ),
        (
            {"slices": 1},
            [node(CPU=8.0), node(CPU=8.0), node(CPU=4.0)],
            None,
            f"1 slice of {KIND} asked for, and the cluster has none (nodes of 4 CPU, 8 CPU)",
        ),
    ],
)
def test_slices_that_there_will_never_be_are_refused(
    compute: dict[str, Any], nodes: list[dict[str, Any]], most: int | None, said: str
) -> None:
    with pytest.raises(StudyError) as refused:
        check_slices(study(device="tpu", accelerator="tpu-v4-16", **compute), nodes, NEEDS, "tpu", most=most)
    assert str(refused.value).startswith(f"mini.yaml: compute.slices: {said}")
    assert "\n" not in str(refused.value)


def test_workers_on_cpus_and_gpus_must_fit_a_node() -> None:
    nodes = [node(CPU=8.0), node(CPU=8.0, GPU=2.0)]
    assert check_slices(study(device="cpu", slices=4), nodes, {"CPU": 4.0}, "cpu") == (4, [])
    assert check_slices(study(device="cpu", slices=5), nodes, {"CPU": 4.0}, "cpu") == (
        4,
        ["4 of 5 slices of 4 CPU are there: the study begins on them and takes others as they come"],
    )
    with pytest.raises(StudyError, match=r"1 slice of 9 CPU asked for, and the cluster has none \(nodes of 8 CPU, "):
        check_slices(study(device="cpu"), nodes, {"CPU": 9.0}, "cpu")
    with pytest.raises(StudyError, match=r"1 slice of 4 CPU and 4 GPU asked for"):
        check_slices(study(device="cuda", workers_per_slice=4), nodes, {"CPU": 1.0, "GPU": 1.0}, "cuda")


CLUSTERS = Path(__file__).parents[2] / "clusters"


def test_a_head_knows_how_many_slices_its_cluster_can_ever_have() -> None:
    pod = cluster_file(CLUSTERS / "gcp-tpu-v4-pod.yaml")
    assert most_slices(study(device="tpu", accelerator="tpu-v4-32"), "tpu", pod) == 1
    assert most_slices(study(device="tpu"), "tpu", pod) == 4
    assert most_slices(study(device="tpu", accelerator="tpu-v4-16"), "tpu", pod) == 0
    assert most_slices(study(), "cpu", pod) is None
    assert cores_to_come(pod) == [240]


def test_auto_is_a_tpu_where_the_first_slice_is_still_to_come(tmp_path: Path) -> None:
    head = {"CPU": 2.0}
    pod = cluster_file(CLUSTERS / "gcp-tpu-v4-pod.yaml")
    assert device_of_study(study(), head, pod) == "tpu"
    assert device_of_study(study(device="cpu"), head, pod) == "cpu"
    assert device_of_study(study(), head, cluster_file(CLUSTERS / "local.yaml")) == "cpu"
    text = (CLUSTERS / "gcp-tpu-v4-pod.yaml").read_text().replace("acceleratorType: v4-32", "acceleratorType: v5p-32")
    (tmp_path / "other.yaml").write_text(text)
    assert device_of_study(study(), head, cluster_file(tmp_path / "other.yaml")) == "cpu"


def test_machines_of_ones_own_may_be_tpu_hosts_that_their_file_does_not_tell_of(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("a: 1")
    (tmp_path / "broken.yaml").write_text("a: [")
    for path in (CLUSTERS / "local.yaml", tmp_path / "none.yaml", tmp_path / "other.yaml", tmp_path / "broken.yaml"):
        assert most_slices(study(device="tpu"), "tpu", cluster_file(path)) is None
        assert cores_to_come(cluster_file(path)) == []
