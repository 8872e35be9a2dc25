"""What the sections of a cluster file may hold that Ray passes on unread: a key that is misspelt there is not missed.

Sources: Google's references of `instances.insert` (Compute Engine, v1) and `projects.locations.nodes` (Cloud TPU,
v2alpha1), and Ray's providers (`ray/autoscaler/_private`).
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

PROVIDERS: Final = ("aliyun", "aws", "azure", "gcp", "local", "vsphere")
_EVERY: Final = frozenset(("type", "disable_node_updaters", "disable_launch_config_check", "foreground_node_launch",
                           "worker_liveness_check", "worker_rpc_drain"))  # fmt: skip
PROVIDER_KEYS: Final = {
    "local": _EVERY | {"head_ip", "worker_ips", "external_head_ip", "coordinator_address", "use_internal_ips"},
    "gcp": _EVERY | {"region", "availability_zone", "project_id", "gcp_credentials", "cache_stopped_nodes",
                     "use_internal_ips", "use_external_head_ip"},
}  # fmt: skip
TPU_KEYS: Final = frozenset((
    "acceleratorConfig", "acceleratorType", "autocheckpointEnabled", "bootDiskConfig", "cidrBlock", "dataDisks",
    "description", "labels", "metadata", "networkConfig", "networkConfigs", "runtimeVersion", "schedulingConfig",
    "serviceAccount", "serviceAccounts", "shieldedInstanceConfig", "tags", "upcomingMaintenance",
))  # fmt: skip
TPU_SECTIONS: Final = {
    "acceleratorConfig": frozenset(("type", "topology")),
    "schedulingConfig": frozenset(("preemptible", "reserved", "spot", "provisioningModel", "maxRunDuration",
                                   "terminationTimestamp")),
    "networkConfig": frozenset(("network", "subnetwork", "enableExternalIps", "canIpForward", "queueCount")),
    "shieldedInstanceConfig": frozenset(("enableSecureBoot",)),
}  # fmt: skip
DISK_KEYS: Final = frozenset((
    "architecture", "autoDelete", "boot", "deviceName", "diskEncryptionKey", "diskSizeGb", "forceAttach",
    "guestOsFeatures", "index", "initializeParams", "interface", "kind", "licenses", "mode", "savedState",
    "shieldedInstanceInitialState", "source", "type",
))  # fmt: skip
NEW_DISK_KEYS: Final = frozenset((
    "architecture", "description", "diskName", "diskSizeGb", "diskType", "enableConfidentialCompute", "labels",
    "licenses", "onUpdateAction", "provisionedIops", "provisionedThroughput", "replicaZones", "resourceManagerTags",
    "resourcePolicies", "sourceImage", "sourceImageEncryptionKey", "sourceSnapshot", "sourceSnapshotEncryptionKey",
    "storagePool",
))  # fmt: skip
GOOGLES_OWN: Final = ("machineType", "acceleratorType", "acceleratorConfig", "runtimeVersion", "schedulingConfig")
COMPUTE_KEYS: Final = frozenset((
    "advancedMachineFeatures", "canIpForward", "confidentialInstanceConfig", "deletionProtection", "description",
    "disks", "displayDevice", "guestAccelerators", "hostname", "instanceEncryptionKey", "keyRevocationActionType",
    "labels", "machineType", "metadata", "minCpuPlatform", "name", "networkInterfaces", "networkPerformanceConfig",
    "params", "privateIpv6GoogleAccess", "reservationAffinity", "resourcePolicies", "scheduling", "serviceAccounts",
    "shieldedInstanceConfig", "shieldedInstanceIntegrityPolicy", "sourceInstanceTemplate", "sourceMachineImage",
    "tags", "workloadIdentityConfig",
))  # fmt: skip


def nearest(given: object, allowed: Collection[str]) -> str | None:
    """The allowed word that was probably meant."""
    folded = {word.casefold(): word for word in sorted(allowed)}
    close = difflib.get_close_matches(str(given).casefold(), folded, n=1)
    return folded[close[0]] if close else None


def not_text(value: object, where: str = "") -> Iterator[str]:
    """A line for each key of a document that is no text, such as 4 or true: neither Ray nor Google has such keys."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        if isinstance(value, dict) and not isinstance(key, str):
            yield f"{where or 'the file'}: key {key!r} given; allowed: text; write it in quotes, or remove it"
        else:
            step = f"[{key}]" if isinstance(value, list) else f".{key}" if where else str(key)
            yield from not_text(inner, f"{where}{step}")


def unknown(where: str, section: Mapping[str, Any], allowed: Collection[str]) -> Iterator[str]:
    """A line for each key of a section that is none of the allowed ones."""
    for key in section:
        if key not in allowed:
            near = nearest(key, allowed)
            mend = f"did you mean {near}?" if near else f"remove it; allowed: {', '.join(sorted(allowed))}"
            yield f"{where}.{key}: unknown key; {mend}"


def unknown_keys(provider: Mapping[str, Any], nodes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A line for each misspelt key of the provider and, on Google Cloud, of the nodes' own configurations."""
    kind = provider.get("type")
    if kind in PROVIDER_KEYS:
        yield from unknown("provider", provider, PROVIDER_KEYS[kind])
    if kind != "gcp":
        for name, config in nodes.items() if kind in PROVIDERS else ():
            if foreign := [key for key in GOOGLES_OWN if key in config]:
                yield (
                    f"available_node_types.{name}.node_config.{foreign[0]}: a key of Google Cloud's, but provider.type "
                    f"is {kind}; remove it, or set provider.type to gcp"
                )
        return
    for name, config in nodes.items():
        where = f"available_node_types.{name}.node_config"
        if is_tpu(config):
            yield from unknown(where, config, TPU_KEYS)
            for section, allowed in TPU_SECTIONS.items():
                if isinstance(config.get(section), dict):
                    yield from unknown(f"{where}.{section}", config[section], allowed)
        elif "machineType" in config and {"acceleratorType", "acceleratorConfig"} & config.keys():
            yield f"{where}: machineType and a TPU's accelerator given; a TPU has no machineType; remove one of them"
        elif "machineType" in config:
            yield from unknown(where, config, COMPUTE_KEYS)
            if not (isinstance(config["machineType"], str) and config["machineType"]):
                given = config["machineType"]
                yield f"{where}.machineType: {given!r:.60} given; allowed: text, such as n2-standard-8; change it"
            yield from _disks(f"{where}.disks", config.get("disks", []))
        else:
            near = {key: word for key in config if (word := nearest(key, {"machineType", "acceleratorType"}))}
            lines = [f"{where}.{key}: unknown key; did you mean {word}?" for key, word in near.items()]
            yield from lines or [
                f"{where}: neither machineType nor acceleratorType; add machineType, or acceleratorType for a TPU"
            ]


def _disks(where: str, disks: object) -> Iterator[str]:
    if not isinstance(disks, list) or not all(isinstance(disk, dict) for disk in disks):
        yield f"{where}: {disks!r:.60} given; allowed: a list of sections; write it so"
        return
    for number, disk in enumerate(disks):
        yield from _misspelt(f"{where}[{number}]", disk, DISK_KEYS)
        if isinstance(disk.get("initializeParams"), dict):
            yield from _misspelt(f"{where}[{number}].initializeParams", disk["initializeParams"], NEW_DISK_KEYS)


def _misspelt(where: str, section: Mapping[str, Any], known: Collection[str]) -> Iterator[str]:
    """A line for each key that is nearly a known one; another one may be Google's all the same."""
    for key in section:
        if key not in known and (near := nearest(key, known)):
            yield f"{where}.{key}: unknown key; did you mean {near}?"


def is_tpu(config: Mapping[str, Any]) -> bool:
    """Whether Ray takes a node's configuration for that of a TPU."""
    return "machineType" not in config and ("acceleratorType" in config or "acceleratorConfig" in config)
