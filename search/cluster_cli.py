"""The command `convscale cluster check FILE...`: mistakes in cluster files, found before anything is started."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Cluster files for `ray up`.", add_completion=False)


@app.callback()
def cluster() -> None:
    """Cluster files for `ray up`, such as those in clusters/."""


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Cluster files (YAML).")],
) -> None:
    """Check cluster files by Ray's own validation and the arithmetic of TPU v4; contacts nothing, starts nothing."""
    wrong = False
    for file in files:
        problems, fine = judge(file)
        wrong |= bool(problems)
        for problem in problems:
            print(f"convscale: {' '.join(problem.split())}", file=sys.stderr)
        if fine:
            print(" ".join(fine.split()))
    if wrong:
        raise typer.Exit(2)


def judge(file: Path) -> tuple[list[str], str]:
    """A file's problems, a line each that opens with its path; and if there are none, the line that says so."""
    from search.yaml_file import YamlError, parse_yaml

    try:
        document = parse_yaml(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return [f"{file}: no such file{_near(file)}"], ""
    except IsADirectoryError:
        inside = ", ".join(sorted(str(path) for path in file.glob("*.yaml"))[:5])
        return [f"{file}: a folder; name a cluster file" + (f", such as {inside}" if inside else "")], ""
    except OSError as error:
        return [f"{file}: {error.strerror}; mend that, and start again"], ""
    except UnicodeDecodeError as error:
        return [f"{file}: not text (byte {error.start} is not UTF-8); name a cluster file (YAML)"], ""
    except YamlError as error:
        return [f"{file}:{error}"], ""
    from clusters.check import check as verdict_of

    verdict = verdict_of(document)
    if verdict.problems:
        return [f"{file}: {problem}" for problem in verdict.problems], ""
    to_do = f"; before ray up: {'; '.join(verdict.to_do)}" if verdict.to_do else ""
    return [], f"{file}: ok: starts {verdict.starts}{to_do}"


def _near(file: Path) -> str:
    from clusters.keys import nearest

    there = {path.name for path in file.parent.glob("*.y*ml")} if file.parent.is_dir() else set()
    near = nearest(file.name, there)
    return f"; did you mean {file.parent / near}?" if near else "; name a cluster file, such as clusters/local.yaml"
