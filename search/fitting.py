"""A study fitted to the Ray cluster that it was sent to: refused in one line, before anything is leased, if the cluster
cannot train it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from clusters.tpu import CHIPS_PER_HOST
from clusters.tpu_nodes import cpus_of_hosts, slices_at_most
from search.cluster import check_slices, cores_of_cluster, device_of_cluster
from search.devices import check_xla, cores_per_worker
from search.reach import check_reach
from search.slices import Fleet
from search.study import Study
from search.yaml_file import YamlError, parse_yaml

CLUSTER_FILE: Final = Path("~/ray_bootstrap_config.yaml").expanduser()
"""Where `ray up` leaves, on a cluster's head, the file that it started the cluster from."""


def fit_to_cluster(study: Study, fleet: Fleet, folder: str) -> list[str]:
    """Give a fleet that has joined a cluster the plan that fits it; returns what should be known of it, one line each.

    `folder` is where the run's results go, which every node that trains must see, like the data.

    Raises:
        StudyError: the cluster cannot train the study, now or ever.
    """
    nodes, file = fleet.nodes(), cluster_file(CLUSTER_FILE)
    device = device_of_study(study, fleet.resources(), file)
    cores = cores_of_cluster(nodes, device)
    check_xla(study, device, nodes=cores)
    fleet.plan = replace(
        fleet.plan,
        device=device,
        cores=cores_of_a_worker(study, device, cores or cores_to_come(file)),
        chips=CHIPS_PER_HOST,
        topology=study.compute.tpu_slice if device == "tpu" else None,
    )
    there, warnings = check_slices(study, nodes, fleet.plan.resources(), device, most=most_slices(study, device, file))
    fleet.at_first = there + 1
    check_reach(study, folder, nodes, device, here=fleet.node_id)
    return warnings


def cluster_file(path: Path) -> Mapping[str, Any]:
    """The file that `ray up` started this cluster from; empty where this process is not on such a cluster's head."""
    try:
        found = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, YamlError):  # none, or not Ray's
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("provider"), dict) else {}


def device_of_study(study: Study, resources: Mapping[str, float], file: Mapping[str, Any]) -> str:
    """What a study trains on: what it says, or (auto) what the cluster has, or will have by its file."""
    if study.compute.device != "auto":
        return study.compute.device
    there = device_of_cluster(resources)
    return "tpu" if there == "cpu" and most_slices(study, "tpu", file) else there


def most_slices(study: Study, device: str, file: Mapping[str, Any]) -> int | None:
    """The slices of TPUs that a cluster on Google Cloud can ever have; None where its file does not tell: of other
    devices, and of machines of one's own.
    """
    if device != "tpu" or file.get("provider", {}).get("type") != "gcp":
        return None
    wanted, kinds = study.compute.tpu_slice, slices_at_most(file)
    if wanted.hosts == 1:
        return sum(kind.slices * kind.topology.hosts for kind in kinds)
    return sum(kind.slices for kind in kinds if kind.topology == wanted)


def cores_to_come(file: Mapping[str, Any]) -> list[int]:
    """CPU cores of each kind of TPU host that a cluster's file says will come."""
    return cpus_of_hosts(file) if file.get("provider", {}).get("type") == "gcp" else []


def cores_of_a_worker(study: Study, device: str, cores: Sequence[int]) -> int:
    """CPU threads of a worker: on a TPU host it is alone, else workers share what the nodes have."""
    if device == "tpu" and study.compute.cores_per_slice is None:
        return max(1, min(cores, default=1))
    return cores_per_worker(study, cores)
