"""Machines to bring a cluster up on, all of them this one: an SSH server on several loopback addresses.

What is made up: each address has a home and an environment of its own (the server's `SetEnv`), and a virtual
environment that holds this repository's packages. What is real: sshd, keys, rsync, and everything that is run over it.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
import yaml

ROOT: Final = Path(__file__).resolve().parent.parent.parent
SSHD: Final = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:" + os.environ.get("PATH", ""))
LACKING: Final = [name for name, path in (("sshd", SSHD), ("rsync", shutil.which("rsync"))) if path is None]
SCRIPTS: Final = {  # what setup puts into the virtual environment: a program, and the function that it calls
    "ray": "ray.scripts.scripts:main",
    "convscale": "search.cli:main",
    "mlflow": "mlflow.cli:cli",
}
SSH: Final = """#!/bin/bash
for part; do
    [ "$last" = -i ] && part="${{part/#\\~/$HOME}}"
    parts+=("$part")
    last="$part"
done
exec {ssh} -F {folder}/ssh_config -o ControlPath={folder}/control/%C "${{parts[@]}}"
"""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@dataclass
class Machines:
    """A context manager: machines at `addresses`, reached by the `ssh` that comes first on `laptop`'s PATH."""

    addresses: Sequence[str]
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="c", dir="/tmp")))

    def __post_init__(self) -> None:
        self.port, *self.ports = free_ports(5)
        self.homes = {address: self.folder / address.rpartition(".")[2] for address in self.addresses}
        self.key = self.folder / "id"
        self._sshd: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Machines:
        try:
            self._make_keys()
            self._make_ssh()
            for home in self.homes.values():
                self._make_home(home)
            self._start_sshd()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for process in self.processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        finally:
            if self._sshd is not None:
                self._sshd.kill()
                self._sshd.wait()
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def bashrc(self) -> str:
        """What the machines' users have in ~/.bashrc."""
        return f'PATH="{self.folder}/bin:$PATH"\n'

    def processes(self) -> list[psutil.Process]:
        """Living processes that came out of sessions on these machines."""
        found = []
        for process in psutil.process_iter():
            try:
                if (
                    process.environ().get("CONVSCALE_TMPDIR", "").startswith(f"{self.folder}/")
                    and process.status() != psutil.STATUS_ZOMBIE
                ):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def laptop(self, **changes: str) -> dict[str, str]:
        """The environment of the machine from which a user works: it has a home, a token and this repository."""
        home = self.folder / "laptop"
        (home / "tmp").mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHON"))}
        return (
            kept
            | {
                "HOME": str(home),
                "TMPDIR": str(home / "tmp"),
                "RAY_TMPDIR": str(home / "tmp"),
                "RAY_USAGE_STATS_ENABLED": "0",
                "PATH": f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            }
            | changes
        )

    def fill_in(self, path: Path) -> Path:
        """A cluster file's copy with its addresses, user and key, and ports that are free here."""
        config = yaml.safe_load(path.read_text())
        head, *workers = self.addresses
        config["provider"] |= {"head_ip": head, "worker_ips": workers}
        config["auth"] = {"ssh_user": getpass.getuser(), "ssh_private_key": str(self.key)}
        text = yaml.safe_dump(config, width=10_000)
        for port, free in zip(("6379", "8265", "5000", "10001"), self.ports, strict=True):
            assert port in text
            text = text.replace(port, str(free))
        filled = self.folder / path.name
        filled.write_text(text)
        return filled

    def _make_keys(self) -> None:
        for name in ("id", "host"):
            keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)]
            subprocess.run(keygen, check=True, stdin=subprocess.DEVNULL)

    def _make_ssh(self) -> None:
        """An `ssh` that knows the port, as ~/.ssh/config would tell it, and takes the `~` of a key for the home that
        the environment names: ssh itself asks the user database.
        """
        (self.folder / "ssh_config").write_text(f"Host 127.0.0.*\n  Port {self.port}\n")
        (self.folder / "bin").mkdir()
        (self.folder / "control").mkdir()
        ssh = self.folder / "bin" / "ssh"
        ssh.write_text(SSH.format(ssh=shutil.which("ssh"), folder=self.folder))
        ssh.chmod(0o755)

    def _make_home(self, home: Path) -> None:
        """A home in which `make install` has nothing left to do: its packages are this repository's own."""
        checkout = home / "convscale"
        venv.create(checkout / ".venv", symlinks=True)
        site = checkout / ".venv" / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
        (site / "here.pth").write_text(f"{checkout}\nimport site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
        for name, target in SCRIPTS.items():
            module, _, function = target.partition(":")
            script = checkout / ".venv" / "bin" / name
            script.write_text(
                f"#!{script.parent}/python\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n"
            )
            script.chmod(0o755)
        (checkout / ".venv" / ".installed").touch()
        (home / ".bashrc").write_text(self.bashrc)
        (home / "t").mkdir()  # a short name: a socket's path may have 107 letters

    def _start_sshd(self) -> None:
        lines = [
            f"HostKey {self.folder}/host",
            f"AuthorizedKeysFile {self.key}.pub",
            f"PidFile {self.folder}/sshd.pid",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "PermitRootLogin prohibit-password",
            "MaxSessions 100",
            "MaxStartups 100",
            *(f"ListenAddress {address}:{self.port}" for address in self.addresses),
        ]
        for address, home in self.homes.items():
            lines += [f"Match LocalAddress {address}", f"  SetEnv HOME={home} CONVSCALE_TMPDIR={home}/t"]
        (self.folder / "sshd_config").write_text("\n".join(lines) + "\n")
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where sshd locks itself in; Debian's service makes it
        # it lets a key in as the user who runs the tests, maybe root: it ends when they do, however that happens
        guard = ["setpriv", "--pdeathsig", "KILL"]
        command = [*guard, str(SSHD), "-D", "-f", f"{self.folder}/sshd_config", "-E", f"{self.folder}/sshd.log"]
        self._sshd = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        end = time.monotonic() + 30
        for address in self.addresses:
            while True:
                try:
                    socket.create_connection((address, self.port), timeout=10).close()
                    break
                except OSError:
                    assert time.monotonic() < end, (self.folder / "sshd.log").read_text()
                    time.sleep(0.05)


def run(*command: str | Path, cwd: Path, env: Mapping[str, str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its output and errors in one text."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
        **options,
    )
