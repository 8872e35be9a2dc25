"""Whether the TPU nodes of a cluster file are ones that exist: names, shapes, chips per host, zone, runtime."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from clusters.keys import is_tpu, nearest
from clusters.tpu import CHIPS_PER_HOST, GENERATION, Topology

REGION: Final = "us-central2"
ZONE: Final = "us-central2-b"
"""The one zone that has TPU v4."""
RUNTIME: Final = "tpu-ubuntu2204-base"
RUNTIMES: Final = re.compile(r"tpu-ubuntu\d{4}-base|tpu-vm-[\w.-]+|v2-alpha-tpuv4[\w-]*")
"""What Google's names for TPU v4's software look like, the frameworks' versions among them: tpu-vm-v4-pt-2.0."""
NODES: Final = "available_node_types"


@dataclass(frozen=True, slots=True)
class SliceNodes:
    """A kind of slices that a cluster file starts: so many, each of this shape."""

    topology: Topology
    slices: int

    def __str__(self) -> str:
        hosts = self.slices * self.topology.hosts
        return (
            f"{self.slices} x {self.topology.accelerator} ({hosts} host{'s' * (hosts != 1)}, "
            f"{self.slices * self.topology.chips} chips, {self.slices * self.topology.cores} cores)"
        )


def slices_of(config: Mapping[str, Any]) -> list[SliceNodes]:
    """What a cluster file without complaints starts."""
    found = []
    for node in config.get(NODES, {}).values():
        if is_tpu(node["node_config"]):
            found.append(SliceNodes(_topology(node["node_config"]), node.get("min_workers", 0)))
    return found


def slices_at_most(config: Mapping[str, Any]) -> list[SliceNodes]:
    """The slices of TPU v4 that a cluster which was started from a file can ever have, kind by kind."""
    every = config.get("max_workers")
    found = []
    for node in config[NODES].values():
        if not is_tpu(node["node_config"]):
            continue
        try:
            topology = _topology(node["node_config"])
        except ValueError:  # another generation
            continue
        bounds = [count for count in (node.get("max_workers"), every) if isinstance(count, int)]
        found.append(SliceNodes(topology, min(bounds, default=0)))
    return found


def cpus_of_hosts(config: Mapping[str, Any]) -> list[int]:
    """CPU cores of a host of each kind of slices that a file names, where it tells."""
    nodes = config.get(NODES, {}).values()
    return [
        int(node["resources"]["CPU"]) for node in nodes if is_tpu(node["node_config"]) and "CPU" in node["resources"]
    ]


def complaints(config: Mapping[str, Any]) -> Iterator[str]:
    """A line for each thing about the TPU nodes of a cluster file for Google Cloud that cannot be."""
    nodes: Mapping[str, Any] = config.get(NODES, {})
    for name, node in nodes.items():
        for resource in filter(_misspelt, node["resources"]):
            yield f"{NODES}.{name}.resources.{resource}: unknown to Ray; did you mean {resource.upper()}?"
    tpus = {name: node for name, node in nodes.items() if is_tpu(node["node_config"])}
    for name, node in nodes.items():
        where = f"{NODES}.{name}"
        if name in tpus:
            yield from _tpu(where, node)
            if name == config.get("head_node_type"):
                yield f"head_node_type: {name!r} given, a TPU, which no head may be; name one with a machineType"
        else:
            yield from _without_tpu(where, node)
    if tpus:
        yield from _place(config["provider"])


def _place(provider: Mapping[str, Any]) -> Iterator[str]:
    for key, right in (("region", REGION), ("availability_zone", ZONE)):
        given = provider.get(key)
        if given != right:
            said = f"{given!r} given" if given is not None else "missing"
            yield f"provider.{key}: {said}; TPU v4 is in {ZONE} only; set it to {right}"


def _tpu(where: str, node: Mapping[str, Any]) -> Iterator[str]:
    config = node["node_config"]
    topology = None
    try:
        topology = _topology(config)
    except ValueError as error:
        yield f"{where}.node_config.{error}"
    if "acceleratorType" in config and "acceleratorConfig" in config:
        yield f"{where}.node_config: {_both(config)}"
    yield from _runtime(f"{where}.node_config", config)
    yield from _scheduling(f"{where}.node_config.schedulingConfig", config.get("schedulingConfig"))
    yield from _resources(f"{where}.resources", node["resources"], topology)


def _topology(config: Mapping[str, Any]) -> Topology:
    """The slice that a TPU node is; raises ValueError, which opens with the key that is wrong."""
    if "acceleratorType" in config:
        return _of_type(config["acceleratorType"])
    return _of_config(config["acceleratorConfig"])


def _of_type(given: object) -> Topology:
    try:
        topology = Topology.of_accelerator(str(given))
    except ValueError as error:
        raise ValueError(f"acceleratorType: {str(error).replace('tpu-v4', 'v4')}") from None
    if given != topology.accelerator:
        raise ValueError(f"acceleratorType: {given!r} given; write it as Google does: {topology.accelerator}")
    return topology


def _of_config(given: object) -> Topology:
    example = "{type: V4, topology: 2x2x2}"
    if not isinstance(given, dict) or not {"type", "topology"} <= given.keys():
        raise ValueError(f"acceleratorConfig: {given!r} given; allowed: a type and a topology, such as {example}")
    if given["type"] != GENERATION.upper():
        raise ValueError(f"acceleratorConfig.type: {given['type']!r} given; allowed: V4; set it to V4")
    try:
        return Topology.parse(f"{GENERATION}:{given['topology']}")
    except ValueError as error:
        raise ValueError(f"acceleratorConfig.topology: {str(error).replace('v4:', '')}") from None


def _both(config: Mapping[str, Any]) -> str:
    try:
        named, shaped = _of_type(config["acceleratorType"]), _of_config(config["acceleratorConfig"])
    except ValueError:
        return "acceleratorType and acceleratorConfig given; allowed: one of them; remove the other"
    if named.chips == shaped.chips:
        return "acceleratorType and acceleratorConfig given, of the same size; Ray allows one of them; remove the other"
    return (
        f"acceleratorType {named.accelerator} has {named.chips} chips, acceleratorConfig.topology {shaped.shape} has "
        f"{shaped.chips} ({shaped.accelerator}); allowed: one of them; remove the one that is wrong"
    )


def _runtime(where: str, config: Mapping[str, Any]) -> Iterator[str]:
    given = config.get("runtimeVersion")
    if given is None:
        if not any(nearest(key, {"runtimeVersion"}) for key in config):  # a misspelt one is complained of by its name
            yield f"{where}.runtimeVersion: missing; Google makes no TPU without; set it to {RUNTIME}"
    elif not (isinstance(given, str) and RUNTIMES.fullmatch(given)):
        yield f"{where}.runtimeVersion: {given!r:.60} given; allowed on TPU v4: {RUNTIME} or tpu-vm-...; use {RUNTIME}"


def _scheduling(where: str, given: object) -> Iterator[str]:
    if not isinstance(given, dict):
        if given is not None:
            yield f"{where}: {given!r} given; allowed: a section such as {{spot: true}}; write it so"
        return
    for key in ("preemptible", "spot", "reserved"):
        if not isinstance(given.get(key, False), bool):
            yield f"{where}.{key}: {given[key]!r:.60} given; allowed: true or false; change it"
            return
    chosen = [key for key in ("preemptible", "spot", "reserved") if given.get(key)]
    if len(chosen) > 1:
        yield f"{where}: {' and '.join(chosen)} given; allowed: one of them; remove the other"


def _resources(where: str, resources: Mapping[str, Any], topology: Topology | None) -> Iterator[str]:
    chips = resources.get("TPU")
    if chips != CHIPS_PER_HOST and not ("TPU" not in resources and any(map(_misspelt, resources))):
        said = "missing" if chips is None else f"{chips!r} given"
        why = ""
        if topology is not None and topology.hosts > 1 and chips in (topology.chips, topology.cores):
            why = ", also in a slice of several"
        yield f"{where}.TPU: {said}; a TPU v4 host has {CHIPS_PER_HOST} chips{why}; set it to {CHIPS_PER_HOST}"
    for name in resources:
        if not name.startswith("TPU-"):
            continue
        right = f"TPU-{topology.accelerator}-head" if topology is not None else None
        if right is not None and name != right:
            yield f"{where}.{name}: not of this slice; Ray adds {right} by itself; remove it"
        elif resources[name] != 1:
            yield f"{where}.{name}: {resources[name]!r} given; a slice has 1, and Ray adds it by itself; remove it"


def _misspelt(resource: str) -> bool:
    """Whether a resource is called almost like one of Ray's: it would count as one of the user's own."""
    return resource.upper() in ("CPU", "GPU", "TPU") and resource != resource.upper()


def _without_tpu(where: str, node: Mapping[str, Any]) -> Iterator[str]:
    if {"acceleratorType", "acceleratorConfig"} & node["node_config"].keys():
        return  # with a machineType, which is complained of
    for name in node["resources"]:
        if name == "TPU" or name.startswith("TPU-"):
            yield (
                f"{where}.resources.{name}: given, but node_config has no acceleratorType; remove it, or make the node "
                f"a TPU (acceleratorType: {GENERATION}-8, and no machineType)"
            )
