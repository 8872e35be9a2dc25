"""Whether a cluster file for `ray up` is one that can work, told before anything is started and without any cloud.

Ray's own validation, the arithmetic of TPU v4 on top of it, keys that Ray passes on unread, and what would leave the
cluster open to others.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

from clusters import keys, rays_own, safety, tpu_nodes

EXAMPLES: Final = re.compile(r"192\.0\.2\.|198\.51\.100\.|203\.0\.113\.")
"""How addresses begin that stand for others in documentation (RFC 5737)."""
LONGEST_NAME: Final = 63
"""Letters of a machine's name on Google Cloud."""
NODES: Final = tpu_nodes.NODES


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong with a cluster file, a line each; and if nothing is, what it starts and what is left to fill in."""

    problems: tuple[str, ...]
    starts: str = ""
    to_do: tuple[str, ...] = ()


def check(config: object) -> Verdict:
    """Judge a cluster file's document. Imports Ray; contacts nothing, and needs no credentials."""
    if config is None:
        return Verdict(("empty; allowed: a cluster file for ray up; start from one of clusters/*.yaml",))
    if not isinstance(config, dict):
        return Verdict((f"a {type(config).__name__} given; allowed: a section of keys; start from clusters/*.yaml",))
    if unreadable := list(keys.not_text(config)):
        return Verdict(tuple(map(_one_line, unreadable)))
    problems = list(rays_own.of_schema(config))
    if _has_shape(config):
        provider, nodes = config["provider"], _nodes(config)
        problems += keys.unknown_keys(provider, nodes)
        problems += _counts(config)
        problems += _mounts(config)
        if provider.get("type") == "local":
            problems += _local(config)
        whole = all({"node_config", "resources"} <= node.keys() for node in config.get(NODES, {}).values())
        if provider.get("type") == "gcp" and whole:
            problems += tpu_nodes.complaints(config)
            problems += _google(config)
        problems += safety.complaints(config)
    problems = list(dict.fromkeys(map(_one_line, problems or rays_own.of_preparation(config))))
    if problems:
        return Verdict(tuple(problems))
    return Verdict((), _one_line(_starts(config)), tuple(map(_one_line, _to_do(config))))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _has_shape(config: Mapping[str, Any]) -> bool:
    """Whether the sections are sections, so that the rest can be looked at; Ray's schema has told if not."""
    nodes = config.get(NODES, {})
    commands = [config.get(name, []) for name in safety.START]
    provider = config.get("provider")
    return (
        isinstance(provider, dict)
        and isinstance(provider.get("type"), str)
        and isinstance(config.get("head_node_type", ""), str)
        and isinstance(config.get("auth", {}), dict)
        and isinstance(nodes, dict)
        and all(isinstance(node, dict) for node in nodes.values())
        and all(
            isinstance(node.get(part, {}), dict) for node in nodes.values() for part in ("node_config", "resources")
        )
        and all(isinstance(each, list) and all(isinstance(line, str) for line in each) for each in commands)
    )


def _nodes(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: node.get("node_config", {}) for name, node in config.get(NODES, {}).items()}


def _counts(config: Mapping[str, Any]) -> Iterator[str]:
    wanted = [node.get("min_workers", 0) for node in config.get(NODES, {}).values()]
    at_most = config.get("max_workers")
    if isinstance(at_most, int) and all(isinstance(count, int) for count in wanted) and 0 <= at_most < sum(wanted):
        yield f"max_workers: {at_most} given, fewer than the min_workers of all nodes ({sum(wanted)}); raise it"
    for name, node in config.get(NODES, {}).items():
        fewest, most = node.get("min_workers", 0), node.get("max_workers")
        if isinstance(fewest, int) and isinstance(most, int) and fewest > most:
            yield (
                f"{NODES}.{name}.min_workers: {fewest} given, more than its max_workers ({most}); "
                "lower it, or raise max_workers"
            )
        for key in ("min_workers", "max_workers"):
            if isinstance(node.get(key), int) and node[key] < 0:
                yield f"{NODES}.{name}.{key}: {node[key]} given; allowed: 0 or more; change it"
    head = config.get("head_node_type")
    if config.get(NODES) and head is not None and head not in config[NODES]:
        near = keys.nearest(head, config[NODES])
        yield (
            f"head_node_type: {head!r} given; allowed: {', '.join(config[NODES])}; "
            f"{f'did you mean {near}?' if near else 'name one of them'}"
        )


def _mounts(config: Mapping[str, Any]) -> Iterator[str]:
    mounts = config.get("file_mounts")
    for remote, here in mounts.items() if isinstance(mounts, dict) else ():
        if not (isinstance(here, str) and here):
            yield f"file_mounts.{remote}: {here!r:.60} given; allowed: a path, as text; add what is copied there"


def _local(config: Mapping[str, Any]) -> Iterator[str]:
    provider = config["provider"]
    name = config.get("cluster_name")
    if isinstance(name, str) and not re.fullmatch(r"[\w.-]+", name):
        yield f"cluster_name: {name!r:.60} given; allowed: letters, digits, '-', '_' and '.'; change it"
    fewest = config.get("min_workers", 0)
    if not isinstance(fewest, int) or isinstance(fewest, bool) or fewest < 0:
        yield f"min_workers: {fewest!r:.60} given; allowed: a whole number, 0 or more; change it"
    if "coordinator_address" not in provider:
        for key in ("head_ip", "worker_ips"):
            if _lacks(provider, key):
                yield f"provider.{key}: missing; add the address{'es of the workers' * (key == 'worker_ips')}"
    if isinstance(provider.get("head_ip"), str):  # Ray's schema wants text
        yield from _address("provider.head_ip", provider["head_ip"])
    workers = provider.get("worker_ips")
    if isinstance(workers, list):
        for number, worker in enumerate(workers):
            yield from _address(f"provider.worker_ips[{number}]", worker)
        for address, times in Counter(map(str, workers)).items():
            if times > 1:
                yield f"provider.worker_ips: {address} given {times} times; keep one of them"
            if address == provider.get("head_ip"):
                yield f"provider.worker_ips: {address} given, the head's; the head works, too; remove it"
    if _lacks(config.get("auth", {}), "ssh_user"):
        yield "auth.ssh_user: missing; add the user that the machines let in over SSH"


def _address(where: str, given: object) -> Iterator[str]:
    """Ray asks each machine for itself what a name means, and gives SSH the address: names do not work."""
    try:
        address = IPv4Address(given if isinstance(given, str) else "")
    except ValueError:
        yield (
            f"{where}: {given!r:.60} given; allowed: an IPv4 address, as the other machines and this one see it, and "
            "no name, user or port; change it"
        )
        return
    if address.is_unspecified or address == IPv4Address("127.0.0.1"):
        yield f"{where}: {given} given, by which every machine means itself; write the one that the others see"


def _lacks(section: Mapping[str, Any], key: str) -> bool:
    """Whether a section has no such key; a misspelt one is complained of by its own name."""
    return key not in section and not any(keys.nearest(each, {key}) for each in section)


def _google(config: Mapping[str, Any]) -> Iterator[str]:
    name, nodes = config.get("cluster_name"), config.get(NODES, {})
    plain = {kind for kind, node in nodes.items() if not keys.is_tpu(node["node_config"])}
    role = "worker" if plain - {config.get("head_node_type")} else "head"  # those of TPUs end in "tpu"
    longest = LONGEST_NAME - len(f"ray--{role}-01234567-compute")
    if isinstance(name, str) and not re.fullmatch(rf"[a-z][a-z0-9-]{{0,{longest - 1}}}", name):
        yield (
            f"cluster_name: {name!r:.60} given; allowed on Google Cloud: small letters, digits and '-', opening with a "
            f"letter, {longest} at most (Ray makes machines' names of it); change it"
        )
    for kind in nodes:
        if not re.fullmatch(r"[a-z0-9_-]{1,63}", kind):
            yield (
                f"{NODES}: {kind!r:.80} given; allowed on Google Cloud, where it is a label: small letters, digits, "
                "'-' and '_', 63 at most; change it"
            )
    if _lacks(config.get("auth", {}), "ssh_user"):
        yield "auth.ssh_user: missing; set it to ubuntu"
    head = config.get(NODES, {}).get(config.get("head_node_type"), {}).get("node_config", {})
    scheduling = head.get("scheduling")
    for given in scheduling if isinstance(scheduling, list) else [scheduling]:
        if isinstance(given, dict) and (given.get("preemptible") or given.get("provisioningModel") == "SPOT"):
            yield (
                f"{NODES}.{config['head_node_type']}.node_config.scheduling: a head that may be taken away, and the "
                "whole cluster with it; remove it"
            )


def _starts(config: Mapping[str, Any]) -> str:
    provider = config["provider"]
    if provider["type"] == "local":
        if "worker_ips" not in provider:
            return f"a head and up to {config['max_workers']} workers of {provider['coordinator_address']}"
        count = min(config.get("min_workers", config.get("max_workers", 10**6)), len(provider["worker_ips"]))
        return f"a head ({provider['head_ip']}) and {count} worker{'s' * (count != 1)}, over SSH"
    nodes = config.get(NODES, {})
    head = config.get("head_node_type")
    machine = nodes.get(head, {}).get("node_config", {}).get("machineType")
    parts = [f"a head ({machine})" if machine else "a head"]
    if provider["type"] == "gcp":
        parts += [str(each) for each in tpu_nodes.slices_of(config) if each.slices]
    for name, node in nodes.items():
        count = node.get("min_workers", 0)
        if name != head and count and not keys.is_tpu(node["node_config"]):
            parts.append(f"{count} x {node['node_config'].get('machineType', name)}")
    return " and ".join(parts)


def _to_do(config: Mapping[str, Any]) -> Iterator[str]:
    """What a file leaves to be filled in: nothing is wrong with it, but it cannot be started yet."""
    provider = config["provider"]
    if provider["type"] == "gcp" and not provider.get("project_id"):
        yield "set provider.project_id"
    for key in ("head_ip", "worker_ips"):
        given = provider.get(key)
        if any(EXAMPLES.match(str(address)) for address in (given if isinstance(given, list) else [given])):
            yield f"set provider.{key}"
    auth = config.get("auth") or {}
    if provider["type"] == "local" and auth.get("ssh_user") == "you":
        yield "set auth.ssh_user"
    private = auth.get("ssh_private_key")
    if isinstance(private, str) and not Path(private).expanduser().exists():
        yield f"make {private}, which auth.ssh_private_key names"
    lacking = [
        path for path in map(str, config.get("file_mounts", {}).values()) if not Path(path).expanduser().exists()
    ]
    for path in lacking:
        if path.startswith(("~", "/")):
            yield f"make {path}, which file_mounts copies"
    if here := [path for path in lacking if not path.startswith(("~", "/"))]:
        yield f"go to the folder that has {here[0]}, which file_mounts copies: the root of the repository"
