"""Ends what clusters/local.yaml started, and nothing else there: `python -m clusters.stop [--here [--forget]]`.

`ray stop` ends every Ray process of the user, other clusters' too. Here a process belongs to the cluster if its
environment names the cluster's folder for temporary files, which its start commands set and every child inherits.
With `--forget` also the copy of the token and the line in ~/.bashrc go. Without `--here` all of that is done on the
workers that the head knows of, too, and the key and configuration that `ray up` left on the head are removed.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

MARK: Final = "CONVSCALE_CLUSTER"
"""The environment variable that names the folder."""
PATIENCE_S: Final = 10.0
CONFIGURATION: Final = Path("~/ray_bootstrap_config.yaml")
KEY: Final = Path("~/ray_bootstrap_key.pem")
TOKEN: Final = Path("~/.convscale/cluster-token")
BASHRC: Final = Path("~/.bashrc")
OURS: Final = b"convscale/clusters/bin"
"""What the line holds that the start commands of the head add to ~/.bashrc."""
COMMAND: Final = "cd ~/convscale && .venv/bin/python -m clusters.stop --here --forget"


def folder() -> Path:
    """Where the cluster keeps sockets, logs and state on this machine; the start commands say the same."""
    return Path(os.environ.get("CONVSCALE_TMPDIR", "/tmp")) / f"convscale-{getpass.getuser()}"


def stop_here(temporary: Path) -> int:
    """End this machine's processes of the cluster, remove its folder, and tell how many processes there were.

    The raylet goes first and takes its workers along, the GCS last, as in `ray stop`: others complain of their loss.
    """
    mark = f"{MARK}={temporary}".encode()
    found = set(_marked(mark))
    for chosen in (("raylet",), None, ("gcs_server",)):
        _end([pid for pid in _marked(mark) if _in_turn(_name(pid), chosen)], signal.SIGTERM)
    _end(list(_marked(mark)), signal.SIGKILL)
    shutil.rmtree(temporary, ignore_errors=True)
    return len(found)


def forget() -> None:
    """Remove this machine's copy of the token, and the line in ~/.bashrc by which `ray down` comes here."""
    TOKEN.expanduser().unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it holds something else, such as the token that the copy is of
        TOKEN.expanduser().parent.rmdir()
    bashrc = BASHRC.expanduser()
    lines = bashrc.read_bytes().splitlines(keepends=True) if bashrc.exists() else []
    if kept := [line for line in lines if OURS not in line]:
        if kept != lines:
            bashrc.write_bytes(b"".join(kept))
    elif lines:
        bashrc.unlink()


def stop_workers(configuration: Path, key: Path) -> list[str]:
    """End the cluster on the workers named in what `ray up` left on the head; returns what could not be done."""
    if not configuration.exists():
        return []
    try:
        config = json.loads(configuration.read_text()) if _ours(configuration) else None
    except ValueError:  # it was cut off while it was written
        config = None
    if config is None:
        return [f"{configuration} does not tell this cluster's workers; they end by themselves within minutes"]
    options = [
        "BatchMode=yes",
        "ServerAliveInterval=10",
        "StrictHostKeyChecking=no",
        f"UserKnownHostsFile={os.devnull}",
        "LogLevel=ERROR",
    ]
    ssh = ["ssh", *(part for option in (*options, "ConnectTimeout=10") for part in ("-o", option))]
    if key.exists():
        ssh += ["-o", "IdentitiesOnly=yes", "-i", str(key)]

    def stop(address: str) -> str | None:
        command = [*ssh, f"{config['auth']['ssh_user']}@{address}", COMMAND]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        reason = " ".join(done.stderr.split()) or f"status {done.returncode}"
        return f"{address}: {reason}; it ends by itself within minutes" if done.returncode else None

    with ThreadPoolExecutor(16) as pool:
        return [line for line in pool.map(stop, config["provider"].get("worker_ips", ())) if line]


def _ours(configuration: Path) -> bool:
    """Whether it is a configuration of this cluster: the head may have been made that of another since."""
    return configuration.exists() and MARK.encode() in configuration.read_bytes()


def _marked(mark: bytes) -> Iterator[int]:
    """Living processes with this in their environment, as far as they may be looked at; not this one."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                yield int(entry.name)
        except OSError:  # ended meanwhile, or another user's
            continue


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _in_turn(name: str, chosen: Sequence[str] | None) -> bool:
    return name in chosen if chosen is not None else name not in ("raylet", "gcs_server")


def _end(pids: list[int], number: signal.Signals) -> None:
    """Signal processes and wait until they are gone, `PATIENCE_S` at most."""
    ours = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # gone; or the number is another's by now
            os.kill(pid, number)
            ours.append(pid)
    end = time.monotonic() + PATIENCE_S
    while any(_alive(pid) for pid in ours) and time.monotonic() < end:
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def main(arguments: Sequence[str]) -> None:
    """Stop this machine's part of the cluster, or (without `--here`) all of it; says what it did on standard output."""
    configuration, key = CONFIGURATION.expanduser(), KEY.expanduser()
    whole = "--here" not in arguments
    if whole:  # workers first: a raylet that has lost the head takes its time to end
        for line in stop_workers(configuration, key):
            print(line)
    print(f"{stop_here(folder())} processes of {folder()} ended")
    if whole or "--forget" in arguments:
        forget()
    if whole and _ours(configuration):
        configuration.unlink(missing_ok=True)
        key.unlink(missing_ok=True)


if __name__ == "__main__":
    main(sys.argv[1:])
