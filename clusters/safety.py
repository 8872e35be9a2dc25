"""What would leave a cluster open to others: pages on public interfaces, no authentication, secrets in the file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

START: Final = ("head_start_ray_commands", "worker_start_ray_commands")
LOCAL: Final = ("127.0.0.1", "localhost", "::1")
TOKEN: Final = "~/.ray/auth_token"
"""Where Ray looks for the token if nothing names another file."""
_VALUE: Final = r"[\"']?(?![$`~/\"'\s;<]|$)(?!(?:\d{1,4}|true|false|yes|no|on|off|none)\b)"
SECRETS: Final = (
    ("a private key", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY")),
    ("a Google key", re.compile(r"\bAIza[\w-]{30,}|\bya29\.[\w-]{10,}")),
    ("an AWS key", re.compile(r"\bAKIA[0-9A-Z]{16}\b")),
    ("a GitHub token", re.compile(r"\bgh[pousr]_\w{30,}|\bgithub_pat_\w{30,}")),
    ("a Hugging Face token", re.compile(r"\bhf_[A-Za-z0-9]{20,}")),
    # what a shell takes from elsewhere ($NAME, $(command), a path) is none, nor is a switch
    ("a secret", re.compile(rf"\b\w*(?:TOKEN|PASSWORD|PASSWD|SECRET|API_?KEY|ACCESS_KEY)={_VALUE}", re.IGNORECASE)),
    ("a secret", re.compile(rf"(?<!\S)--(?:\w+-)*(?:token|password|passwd|secret|api-?key)[= ]\s*(?!-){_VALUE}")),
    ("a secret", re.compile(rf"\bAuthorization:\s*\w+\s+{_VALUE}", re.IGNORECASE)),
    ("a password", re.compile(r"\w://[^\s/:@]+:(?![$`])[^\s/@]+@")),
)
HEX: Final = re.compile(r"\b(?![0-9a-f]{40}\b)[0-9a-f]{32,}\b", re.IGNORECASE)
"""Digits as a token has them; those of a commit are 40."""
DIGEST: Final = re.compile(r"sha\d*sum|md5|sha\d+|checksum|digest", re.IGNORECASE)
SECRET_KEYS: Final = re.compile(r"(?:token|password|passwd|secret|api_?key|credentials)$", re.IGNORECASE)
PUBLIC: Final = re.compile(r"(?<!\S)(--?[\w-]+)[= ]\s*[\"']?(0\.0\.0\.0|::|\[::\])(?::\d+)?(?=[\s\"';)]|$)")


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
        if not any(command.strip() for command in commands):
            yield f"{section}: empty, so that nothing starts; take it from clusters/*.yaml"
        for number, command in enumerate(commands):
            if (call := _call(command)) is not None:
                where = f"{section}[{number}]"
                yield from _start(where, command, config.get("file_mounts"))
                yield from _host(where, command, "--dashboard-host")
                yield from _head(where, call) if section == START[0] else _worker(where, call, config)
    for where, command in _texts(config, ""):
        for option, given in PUBLIC.findall(command):
            yield _open(where, option, given)
        if re.search(r"\bmlflow (?:server|ui)\b", command):
            yield from _host(where, command, "--host")
            yield from _host(where, command, "-h")
        yield from _secret(where, command)


def _call(command: str) -> str | None:
    """What `ray start` is called with in a command; None if it is not."""
    found = re.search(r"\bray\s+start\b(.*?)(?:&&|;|$)", command, re.DOTALL)
    return found[1] if found else None


def _option(call: str, name: str) -> str | None:
    found = re.search(rf"(?<!\S){name}[= ]\s*[\"']?([^\s\"';]+)", call)
    return found[1] if found else None


def _start(where: str, command: str, mounts: object) -> Iterator[str]:
    modes = re.findall(r"\bRAY_AUTH_MODE=[\"']?(\w*)", command)
    if not modes:
        yield f"{where}: ray start without RAY_AUTH_MODE; add export RAY_AUTH_MODE=token before it"
        return
    if set(modes) != {"token"}:
        yield f"{where}: RAY_AUTH_MODE={modes[-1]} given; allowed: token; others could run programs on the cluster"
    if re.search(r"\bRAY_AUTH_TOKEN=", command):
        return
    named = re.search(r"\bRAY_AUTH_TOKEN_PATH=[\"']?([^\s\"';]+)", command)
    path = re.sub(r"^\$(?:HOME|{HOME})/", "~/", named[1]) if named else TOKEN
    copied = [target.rstrip("/") for target in mounts] if isinstance(mounts, dict) else []
    if path.startswith("~/") and not any(path == target or path.startswith(f"{target}/") for target in copied):
        mend = f"add {path}: ~/.convscale/token there" if named else "add export RAY_AUTH_TOKEN_PATH=... before it"
        yield f"{where}: ray start wants its token in {path}, which file_mounts does not copy; {mend}"


def _head(where: str, call: str) -> Iterator[str]:
    if not re.search(r"(?<!\S)--head\b", call):
        yield f"{where}: ray start without --head; add it"
    if _option(call, "--autoscaling-config") is None:
        yield (
            f"{where}: ray start without --autoscaling-config, so that no worker is ever started; add "
            "--autoscaling-config=~/ray_bootstrap_config.yaml"
        )


def _worker(where: str, call: str, config: Mapping[str, Any]) -> Iterator[str]:
    heads = [found for command in config.get(START[0]) or () if (found := _call(command)) is not None]
    port = (_option(heads[0], "--port") or "6379") if heads else "6379"
    address = _option(call, "--address")
    if address is None:
        yield f'{where}: ray start without --address; add --address="$RAY_HEAD_IP:{port}"'
    elif (given := re.search(r":(\d+)$", address)) and port.isdigit() and given[1] != port:
        yield f"{where}: --address {address} given, but the head's --port is {port}; make them one"


def _host(where: str, command: str, option: str) -> Iterator[str]:
    for given in re.findall(rf"(?<!\S){option}[= ]\s*[\"']?([^\s\"';]+)", command):
        if given not in LOCAL:
            yield _open(where, option, given)


def _open(where: str, option: str, given: str) -> str:
    return (
        f"{where}: {option} {given} given; allowed: 127.0.0.1, which an SSH tunnel reaches; "
        "set it to 127.0.0.1 (ray attach FILE -p PORT is the tunnel)"
    )


def _secret(where: str, text: str) -> Iterator[str]:
    if where == "cluster_name" or where.startswith("file_mounts."):
        return
    key = re.split(r"[.\[]", where)[-1]
    what = next((name for name, pattern in SECRETS if pattern.search(text)), None)
    if what is None and HEX.search(text) and not DIGEST.search(text):
        what = "a token"
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
