"""What a Ray cluster offers a study, from its nodes as `ray.nodes()` has them: device, TPU slices, cores; and whether
that will ever do, told before anything is leased.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from clusters.hosts import POD_TYPE, SLICE_NAME, Node, labels_of, whole_slices
from search.study import Study, StudyError

_OTHERS: Final = "compute.accelerator, workers_per_slice and cores_per_slice"


def device_of_cluster(resources: Mapping[str, float]) -> str:
    """What "auto" is on a cluster with these resources, as `ray.cluster_resources()` has them."""
    if resources.get("TPU", 0.0) >= 1:
        return "tpu"
    return "cuda" if resources.get("GPU", 0.0) >= 1 else "cpu"


def cores_of_cluster(nodes: Sequence[Node], device: str = "cpu") -> list[int]:
    """CPU cores that workers may have on each node that has the device; one is left for the search's own processes."""
    resource = {"tpu": "TPU", "cuda": "GPU"}.get(device)
    there = [node for node in _alive(nodes) if resource is None or _amount(node, resource)]
    cores = sorted(_amount(node, "CPU") for node in there)
    return [*cores[:-1], cores[-1] - 1] if cores else []


def check_slices(
    study: Study, nodes: Sequence[Node], needs: Mapping[str, float], device: str, *, most: int | None = None
) -> tuple[int, list[str]]:
    """How many of the study's slices the cluster has now, and if those are too few what should be known of it, one line
    each.

    `needs` is what a worker asks of Ray; `most` the slices that the cluster can ever have, where that is known.

    Raises:
        StudyError: more slices than there can ever be, or no slice of that kind and nothing known to bring one.
    """
    slices, workers = study.compute.slices, study.compute.workers_per_slice
    if device == "tpu":
        whole = whole_slices(nodes, study.compute.tpu_slice).values()
        there = sum(all(_amount(host, "CPU") >= needs["CPU"] for host in hosts) for hosts in whole)
        kind = f"tpu-{study.compute.tpu_slice.accelerator} with {needs['CPU']:g} CPU a host"
    else:
        there, kind = _workers_that_fit(nodes, needs) // workers, _told(needs, workers)
    if there >= slices:
        return there, []
    asked = f"{slices} slice{'s' if slices > 1 else ''} of {kind}"
    if most is not None and slices > most:
        mend = f"lower compute.slices to {most}" if most else f"set {_OTHERS} to what is there"
        raise StudyError(
            f"{study.source}: compute.slices: {asked} asked for, and the cluster can have {most or 'none'}"
            f"{' at most' if most else ''} ({_what_is_there(nodes)}); {mend}, or start a larger cluster"
        )
    if not there and most is None:
        raise StudyError(
            f"{study.source}: compute.slices: {asked} asked for, and the cluster has none ({_what_is_there(nodes)}); "
            f"start one, or set {_OTHERS} to what is there"
        )
    if not there:
        return 0, [f"none of {asked} is there yet: the study waits for the first"]
    return there, [f"{there} of {asked} are there: the study begins on them and takes others as they come"]


def _workers_that_fit(nodes: Sequence[Node], needs: Mapping[str, float]) -> int:
    """How many workers the nodes have room for, none of which can straddle two."""
    asked = {name: amount for name, amount in needs.items() if amount}
    return sum(
        min(int(node["Resources"].get(name, 0.0) // amount) for name, amount in asked.items()) for node in _alive(nodes)
    )


def _what_is_there(nodes: Sequence[Node]) -> str:
    """For people: the slices of TPUs by kind, and the CPU cores, GPUs and chips of nodes."""
    kinds: dict[str, set[str]] = defaultdict(set)
    for node in _alive(nodes):
        labels = labels_of(node)
        if POD_TYPE in labels:
            kinds[f"tpu-{labels[POD_TYPE]}"].add(labels.get(SLICE_NAME, str(node.get("NodeID"))))
    slices = [f"{len(names)} of {kind}" for kind, names in sorted(kinds.items())]
    each = {_told(node["Resources"], 1) for node in _alive(nodes)} - {""}
    return (
        "; ".join([*(["it has " + ", ".join(slices)] if slices else []), *_nodes_with(sorted(each))]) or "it is empty"
    )


def _nodes_with(each: Sequence[str]) -> list[str]:
    return ["nodes of " + ", ".join(each)] if each else []


def _told(resources: Mapping[str, float], times: int) -> str:
    known = ("CPU", "GPU", "TPU")
    return " and ".join(f"{times * resources[name]:g} {name}" for name in known if resources.get(name))


def _alive(nodes: Sequence[Node]) -> list[Node]:
    return [node for node in nodes if node["Alive"]]


def _amount(node: Node, resource: str) -> int:
    return int(node["Resources"].get(resource, 0))
