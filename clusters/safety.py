"""What would leave a cluster open to others: pages on public interfaces, no authentication, secrets in the file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

START: Final = ("head_start_ray_commands", "worker_start_ray_commands")
LOCAL: Final = ("127.0.0.1", "localhost", "::1")
SECRETS: Final = (
    ("a private key", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY")),
    ("a Google key", re.compile(r"\bAIza[\w-]{30,}|\bya29\.[\w-]{10,}")),
    ("an AWS key", re.compile(r"\bAKIA[0-9A-Z]{16}\b")),
    ("a GitHub token", re.compile(r"\bgh[pousr]_\w{30,}|\bgithub_pat_\w{30,}")),
    ("a Hugging Face token", re.compile(r"\bhf_[A-Za-z0-9]{20,}")),
    # what a shell takes from elsewhere ($NAME, $(command), a path) is none, nor are a commit's 40 digits or a digest
    ("a secret", re.compile(r"\b\w*(?:TOKEN|PASSWORD|PASSWD|SECRET|API_?KEY)=[\"']?(?![$`~/\"'\s;]|$)", re.IGNORECASE)),
    ("a token", re.compile(r"(?<!sha256:)\b(?![0-9a-f]{40}\b)[0-9a-f]{32,}\b", re.IGNORECASE)),
)
SECRET_KEYS: Final = re.compile(r"(?:token|password|passwd|secret|api_?key|credentials)$", re.IGNORECASE)


def complaints(config: Mapping[str, Any]) -> Iterator[str]:
    """A line for each such thing."""
    for section in START:
        commands = config.get(section)
        if commands is None:
            yield (
                f"{section}: missing; Ray's own would start it without a token, and on clouds with the dashboard on "
                "0.0.0.0; take it from clusters/*.yaml"
            )
            continue
        for number, command in enumerate(commands):
            yield from _start(f"{section}[{number}]", command)
    for where, command in _texts(config, ""):
        yield from _mlflow(where, command)
        yield from _secret(where, command)


def _start(where: str, command: str) -> Iterator[str]:
    if not re.search(r"\bray start\b", command):
        return
    modes = re.findall(r"\bRAY_AUTH_MODE=[\"']?(\w*)", command)
    if not modes:
        yield f"{where}: ray start without RAY_AUTH_MODE; add export RAY_AUTH_MODE=token before it"
    elif set(modes) != {"token"}:
        yield f"{where}: RAY_AUTH_MODE={modes[-1]} given; allowed: token; others could run programs on the cluster"
    yield from _host(where, command, "--dashboard-host")


def _mlflow(where: str, command: str) -> Iterator[str]:
    if re.search(r"\bmlflow (?:server|ui)\b", command):
        yield from _host(where, command, "--host")
        yield from _host(where, command, "-h")


def _host(where: str, command: str, option: str) -> Iterator[str]:
    for given in re.findall(rf"(?<!\S){option}[= ]\s*[\"']?([^\s\"';]+)", command):
        if given not in LOCAL:
            yield (
                f"{where}: {option} {given} given; allowed: 127.0.0.1, which an SSH tunnel reaches; "
                "set it to 127.0.0.1 (ray attach FILE -p PORT is the tunnel)"
            )


def _secret(where: str, text: str) -> Iterator[str]:
    key = re.split(r"[.\[]", where)[-1]
    what = next((name for name, pattern in SECRETS if pattern.search(text)), None)
    if what is None and SECRET_KEYS.search(key) and not text.startswith(("~", "/", "$")):
        what = "a secret"
    if what is not None:
        yield f"{where}: has what looks like {what}; files are shared; keep it in a file that file_mounts copies"


def _texts(value: object, where: str) -> Iterator[tuple[str, str]]:
    """Every text of a document, and where it is."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _texts(inner, f"{where}[{number}]")
