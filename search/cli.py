"""The command line: `convscale plan|search|results|report|sync|aot STUDY`, `convscale compare STUDY...`,
`convscale law RUNS`, `convscale data convert|index`, `convscale cluster check FILE`, `convscale reference`.

Exit status: 0 done; 2 a mistake in what was asked, or a file that cannot be read or written, told in one line each;
1 the cluster failed; 130 interrupted.
Imports inside the commands keep `--help` and error messages quick.
"""

from __future__ import annotations

import errno
import gc
import sys
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from typer.exceptions import TyperException

from search import cluster_cli, data_cli

app = typer.Typer(
    help="Given this much compute: which model size, how many epochs, which learning rate?",
    add_completion=False,
    pretty_exceptions_enable=False,
)
# Rights, room, and files in the place of folders: whatever else goes wrong with a file is not the user's to mend.
MENDABLE: Final = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EISDIR, errno.ENOTDIR,
                   errno.EEXIST, errno.ENAMETOOLONG)  # fmt: skip
app.add_typer(data_cli.app, name="data")
app.add_typer(cluster_cli.app, name="cluster")
StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="The study file (YAML).")]


@app.command()
def plan(
    study: StudyFile,
    device: Annotated[
        str | None, typer.Option(help="Plan for a device that is not here: tpu-v4. Default: the study's.")
    ] = None,
) -> None:
    """Print what a study would do, without training anything: budgets, cells, epochs, steps, FLOPs, time, warnings."""
    from search.commands import plan_study

    plan_study(study, Console(), device=device)


@app.command()
def search(
    study: StudyFile,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start anew beside the runs there are, instead of going on.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try trials again that failed; else only unfinished ones go on.")
    ] = False,
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster to use (auto, or HOST:PORT); default: one of its own.")
    ] = None,
) -> None:
    """Search a study's budgets for variant, epochs and learning rate; the same command again goes on where it was."""
    from search.session import search as run_search
    from search.terminal import terminal_console

    with terminal_console() as console:
        status = run_search(study, fresh=fresh, address=address, console=console, retry_failed=retry_failed)
        raise typer.Exit(status)


@app.command()
def results(study: StudyFile) -> None:
    """Print a study's results so far and draw its figures anew, from its ledger."""
    from search.commands import show_study

    show_study(study, Console())


@app.command()
def report(
    study: StudyFile,
    output: Annotated[
        Path | None, typer.Option(help="Where the file goes; default: report.html in the run's own folder.")
    ] = None,
) -> None:
    """Write a study's report, one HTML file that opens offline: what to train next, the law, figures and tables."""
    from search.report.command import write_report

    write_report(study, output, Console())


@app.command()
def law(
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="A CSV of runs (.csv, .tsv), or a study file (YAML).")],
    forecast: Annotated[
        list[float] | None, typer.Option(metavar="FLOPS", help="Forecast the loss at so many FLOPs, such as 1e21.")
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(help='What to train with this, such as "110k core-hours", by a study; default: what comes next.'),
    ] = None,
    leave_out: Annotated[int, typer.Option(help="Predict so many of the largest budgets from the others, too.")] = 0,
    bootstraps: Annotated[int, typer.Option(help="Resamples that intervals are made of.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the resamples.")] = 0,
    confidence: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of tables; keys: search/law/as_json.py.")
    ] = False,
) -> None:
    """Fit how loss falls with compute, size, epochs and learning rate; say what to train with the next budget."""
    from search.law_command import show_law

    show_law(
        runs,
        Console(),
        forecasts=forecast or (),
        budgets=budget or (),
        leave_out=leave_out,
        bootstraps=bootstraps,
        seed=seed,
        confidence=confidence,
        as_json=json,
    )


@app.command()
def sync(
    study: StudyFile,
    uri: Annotated[
        str | None, typer.Option(help="An MLflow address to bring up to date; default: the study's own.")
    ] = None,
) -> None:
    """Bring MLflow and Optuna's storage up to date from a study's ledger; any number of times, without duplicates."""
    from search.commands import sync_study

    sync_study(study, uri, Console())


@app.command()
def compare(
    studies: Annotated[
        list[str],
        typer.Argument(metavar="STUDY...", help="Study files; with --uri also names of MLflow's experiments."),
    ],
    budget: Annotated[
        list[str] | None, typer.Option(help='A budget, such as "2e15 FLOPs", and again for more; default: all.')
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Show so many trials of each budget; default: all.")] = None,
    csv: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write all that MLflow has of them as CSV; - for standard output."),
    ] = None,
    markdown: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the tables as Markdown; - for standard output.")
    ] = None,
    all_runs: Annotated[bool, typer.Option("--all-runs", help="Every run of each study, not only its newest.")] = False,
    uri: Annotated[str | None, typer.Option(help="The MLflow address to read; default: that of each study.")] = None,
) -> None:
    """Compare trials of one or several studies, from MLflow: by budget, best first, with what differs between them."""
    from search.compare_command import compare_studies

    compare_studies(
        studies,
        Console(),
        uri=uri,
        budgets=budget or (),
        top=top,
        all_runs=all_runs,
        csv=csv,
        markdown=markdown,
    )


@app.command()
def aot(
    study: StudyFile,
    topology: Annotated[
        str, typer.Option(help="The TPU slice: v4: and its chips along three dimensions.")
    ] = "v4:2x2x1",
    cores: Annotated[
        int | None, typer.Option(help="Cores that a batch is split over: 1, or all of the slice (the default).")
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="A variant of the study, and again for more; default: all of them.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images of a step over all cores; default: the study's.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="Images of an epoch; default: the study's training images, if they are here.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the optimised programs' text beside the results.")] = False,
    top: Annotated[
        int | None, typer.Option(min=1, help="Print each program's costliest instructions, so many; implies --keep.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    record: Annotated[
        Path | None,
        typer.Option(help="Add the programs to this file, too; plans go by clusters/v4_programs.json everywhere."),
    ] = None,
) -> None:
    """Compile a study's train steps with the TPU's own compiler, without a TPU; print memory and estimated speed."""
    from search.aot_command import compile_study

    compile_study(
        study,
        Console(),
        topology=topology,
        cores=cores,
        variants=variant or (),
        batch_size=batch_size,
        images=images,
        keep=keep,
        top=top,
        json=json,
        record_in=record,
    )


@app.command()
def reference() -> None:
    """Print every field of a study file, its default and its meaning, as a Markdown table."""
    from search.reference import reference

    print(reference())


def main() -> None:
    """The entry point: runs a command, and turns the user's mistakes into lines on standard error and status 2."""
    try:
        status = app(sys.argv[1:] or ["--help"], prog_name="convscale", standalone_mode=False)
    except KeyboardInterrupt:
        status = 130
    except TyperException as error:
        print(f"convscale: {' '.join(error.format_message().split())} See convscale --help.", file=sys.stderr)
        status = error.exit_code
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        status, where = 2, f"{error.filename}: " if error.filename else ""
        print(f"convscale: {where}{error.strerror}; mend that, and start again", file=sys.stderr)
    except (ValueError, RuntimeError) as error:
        status = _status_of(error)
        if status is None:
            raise
        for line in str(error).splitlines():
            print(f"convscale: {line}", file=sys.stderr)
    gc.freeze()  # else the interpreter searches all that torch, Ray and MLflow made for garbage, for two seconds
    sys.exit(status)


def _status_of(error: Exception) -> int | None:
    """2 for the user's mistakes, 1 for a cluster that failed, None for anything that is not expected."""
    from search.compare import CompareError
    from search.ledger import LedgerError
    from search.runs import SessionError
    from search.study import StudyError
    from search.tracking_uri import TrackingError
    from trainables.config import TrialRefused

    if isinstance(error, (CompareError, LedgerError, SessionError, StudyError, TrackingError, TrialRefused)):
        return 2
    if "search.law" in sys.modules:
        from search.law import LawError

        if isinstance(error, LawError):
            return 2
    if "search.slices" not in sys.modules:  # else no cluster was asked for, and Ray need not be imported
        return None
    from search.director import FailuresError
    from search.joining import ClusterNotFoundError, FleetError

    return (
        2 if isinstance(error, ClusterNotFoundError) else 1 if isinstance(error, (FleetError, FailuresError)) else None
    )
