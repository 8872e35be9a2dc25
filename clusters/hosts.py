"""TPU hosts among the nodes of a Ray cluster, and the slices they make up; nodes are as `ray.nodes()` has them."""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final

from clusters.tpu import CHIPS_PER_HOST, GENERATION, Topology

Node = Mapping[str, Any]
_PORT_S: Final = 5.0

SLICE_NAME: Final = "ray.io/tpu-slice-name"
NUMBER: Final = "ray.io/tpu-worker-id"
POD_TYPE: Final = "ray.io/tpu-pod-type"
SHAPE: Final = "ray.io/tpu-topology"
ACCELERATOR: Final = f"TPU-{GENERATION.upper()}"
"""What Ray calls a TPU v4, and by which a node announces one."""


def labels_of(node: Node) -> Mapping[str, str]:
    """What a node says of itself."""
    labels: Mapping[str, str] = node.get("Labels") or {}
    return labels


def listens(node: Node) -> bool:
    """Whether a node is still there: when one goes Ray takes seconds to notice, its port refuses at once."""
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=_PORT_S).close()
    except OSError:
        return False
    return True


def whole_slices(nodes: Iterable[Node], topology: Topology) -> dict[str, list[Node]]:
    """The hosts of each slice of which all are there, by its name: of this accelerator type, and of this shape, where
    hosts tell theirs. Where a slice is one host, each host of TPU v4 is one, also those of larger slices.
    """
    hosts = [
        node
        for node in nodes
        if node["Alive"]
        and node["Resources"].get("TPU") == CHIPS_PER_HOST
        and f"accelerator_type:{ACCELERATOR}" in node["Resources"]
    ]
    if topology.hosts == 1:
        return {node["NodeID"]: [node] for node in hosts}
    members: dict[str, list[Node]] = defaultdict(list)
    for node in hosts:
        labels = labels_of(node)
        fits = labels.get(POD_TYPE) == topology.accelerator and labels.get(SHAPE, topology.shape) == topology.shape
        if fits and SLICE_NAME in labels:
            members[labels[SLICE_NAME]].append(node)
    return {name: found for name, found in sorted(members.items()) if len(found) == topology.hosts}
