"""Whether the nodes of a cluster see a study's storage and data: a folder of one machine is none of another's."""

from __future__ import annotations

import hashlib
import secrets
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import fsspec
import ray

from search.study import Study, StudyError

ANSWERS_S: Final = 120.0
_GONE: Final = (
    ray.exceptions.NodeDiedError,
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.TaskUnschedulableError,
)


def check_reach(study: Study, folder: str, nodes: Sequence[Mapping[str, Any]], device: str, *, here: str) -> None:
    """Have every node that may train look at the storage and the data as this process (on node `here`) does, and write
    to the storage. Nodes that join later are not asked.

    Raises:
        StudyError: a node does not see one of them, sees another, or does not answer; a line for each, naming the node.
    """
    resource = {"tpu": "TPU", "cuda": "GPU"}.get(device, "CPU")
    others = [n for n in nodes if n["Alive"] and n["Resources"].get(resource) and n["NodeID"] != here]
    if not others:
        return
    token = secrets.token_hex(8)
    fs, path = fsspec.core.url_to_fs(f"{folder}/.seen-{token}")
    fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    fs.pipe_file(path, token.encode())
    try:
        places = {"storage": f"{folder}/.seen-{token}", "data.path": study.data_config().path}
        wanted = {field: place for field, place in places.items() if place is not None}
        problems = _compare(study, others, wanted, {field: _look(place) for field, place in wanted.items()})
    finally:
        fs.rm_file(path)
    if problems:
        raise StudyError("\n".join(problems))


def _compare(
    study: Study, nodes: Sequence[Mapping[str, Any]], wanted: Mapping[str, str], seen_here: Mapping[str, str]
) -> list[str]:
    look = ray.remote(num_cpus=0, max_retries=2)(_look_at_all)
    asked = {look.options(label_selector={"ray.io/node-id": n["NodeID"]}).remote(dict(wanted)): n for n in nodes}
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWERS_S)
    wrong: dict[tuple[str, str], list[str]] = defaultdict(list)
    for reference in answered:
        address = str(asked[reference]["NodeManagerAddress"])
        try:
            seen = ray.get(reference)
        except _GONE:  # the node is; whoever trains there next is told
            continue
        except ray.exceptions.RayError as error:
            wrong["", _one_line(error)].append(address)
            continue
        for field in wanted:
            if seen[field] != seen_here[field]:
                told = seen[field] if seen[field].startswith("!") else "!it has other content there"
                wrong[field, told[1:]].append(address)
    for reference in silent:
        ray.cancel(reference, force=True)
        wrong["", f"it has not answered within {ANSWERS_S:g} s"].append(str(asked[reference]["NodeManagerAddress"]))
    return [_told(study, field, why, sorted(names)) for (field, why), names in sorted(wrong.items())]


def _told(study: Study, field: str, why: str, names: list[str]) -> str:
    which = f"node {names[0]}" if len(names) == 1 else f"{len(names)} nodes ({names[0]} and others)"
    if not field:
        return (
            f"{study.source}: compute: {which} of the cluster cannot be asked whether it sees the storage and the data "
            f"({why}); mend it, or take it out of the cluster"
        )
    given = {"storage": study.storage, "data.path": study.data.path}[field]
    return (
        f"{study.source}: {field}: {given!r} given, which {which} of the cluster cannot use as this machine does "
        f"({why}); give a folder that all nodes mount there, or an address such as gs://bucket/folder"
    )


def _look_at_all(places: dict[str, str]) -> dict[str, str]:
    seen = {field: _look(place) for field, place in places.items()}
    if not seen["storage"].startswith("!"):
        seen["storage"] = _write_beside(places["storage"]) or seen["storage"]
    return seen


def _look(place: str) -> str:
    """What is at a place, to be compared: a digest of a file's content or of a folder's names; "!" and why it cannot
    be seen.
    """
    try:
        fs, path = fsspec.core.url_to_fs(place)
        if fs.isdir(path):
            names = sorted(str(name).rstrip("/").rsplit("/", 1)[-1] for name in fs.ls(path, detail=False))
            return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()
        return hashlib.sha256(fs.cat_file(path)).hexdigest()
    except FileNotFoundError:
        return "!it is not there"
    except Exception as error:  # every storage has errors of its own
        return f"!{_one_line(error)}"


def _write_beside(place: str) -> str | None:
    """None if a file can be written beside the one at a place; else "!" and why not."""
    try:
        fs, path = fsspec.core.url_to_fs(f"{place}-{secrets.token_hex(4)}")
        fs.pipe_file(path, b"")
        fs.rm_file(path)
    except Exception as error:
        return f"!it cannot be written to: {_one_line(error)}"
    return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
