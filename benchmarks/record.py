"""Makes a table for `search.recorded` of searches that trained every point of their grids:

    python -m benchmarks.record runs/digits/run-1 runs/digits-again/run-1 --study digits --out digits.csv

The runs, one for each `training.seed`, must otherwise be of the same study, with `search.sampler: grid`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from search.ledger import read_ledger
from search.recorded import read_table, rows_of, write_table


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a table of recorded runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the folder of a run, with its ledger")
    parser.add_argument("--study", required=True, help="what the table calls the study")
    parser.add_argument("--out", type=Path, required=True, help="the CSV file to write")
    options = parser.parse_args()
    rows = [row for run in options.runs for row in rows_of(read_ledger(run), options.study)]
    write_table(rows, options.out)
    surface = read_table(options.out).surface
    print(f"{options.out}: {len(rows)} trials, {len(surface.runs)} seeds, noise {100 * surface.noise:.1f} %")


if __name__ == "__main__":
    main()
