"""What every benchmark prints around its tables: the machine, the versions, how busy it was; and the dated report."""

from __future__ import annotations

import argparse
import datetime
import io
import os
import platform
import re
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.table import Table

_WIDTH = 130
PACKAGES = ("torch", "timm", "ray", "optuna", "grain", "mlflow")


class Report:
    """Prints as it goes, and keeps a copy in plain text for `--report`."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.load_at_start = os.getloadavg()[0]
        terminal = Console()
        self._terminal = terminal if terminal.is_terminal else Console(width=_WIDTH)
        self._copy = Console(record=True, width=_WIDTH, file=io.StringIO())  # records; prints nowhere
        self.say(f"{title}, {datetime.date.today().isoformat()}")
        self.say(hardware())
        self.say(", ".join(f"{package} {metadata.version(package)}" for package in PACKAGES))

    def say(self, text: str) -> None:
        """A line (or a few) of text."""
        self._terminal.print(text, highlight=False, soft_wrap=True)
        self._copy.print(text, highlight=False, soft_wrap=True)

    def show(self, table: Table) -> None:
        """A table."""
        self._terminal.print(table)
        self._copy.print(table)

    def finish(self, file: Path | None) -> None:
        """Say how busy the machine was, and append everything to `file`, if one is given."""
        self.say(
            f"Load average of the last minute: {self.load_at_start:.1f} before, {os.getloadavg()[0]:.1f} after "
            "(it counts the benchmark itself)."
        )
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as out:
                out.write(f"# {self.title}\n\n```\n{self._copy.export_text()}```\n\n")
            self._terminal.print(f"appended to {file}")


def hardware() -> str:
    """One line about this machine, such as "Intel(R) Xeon(R) CPU @ 2.20GHz, 2 cores, no GPU"."""
    import torch

    model = platform.processor() or platform.machine()
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = found[1].strip() if found else model
    except OSError:
        pass  # not Linux: the short name has to do
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {gpu}; CPython {platform.python_version()}"


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="few and short rounds: to see that it runs, not to quote")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="append to a report, such as benchmarks/reports/2026-11-22-xeon.md"
    )
    return parser
