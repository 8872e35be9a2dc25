"""The one file that training processes warn into."""

from __future__ import annotations

import logging
import os
import subprocess
import warnings
from pathlib import Path

from trainables.worker_log import warnings_to


def test_warnings_of_every_kind_are_in_the_file_and_chatter_is_not(tmp_path: Path) -> None:
    path = tmp_path / "workers.log"
    log = logging.getLogger("trainables.somewhere")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with warnings_to(str(path), "slice-1"):
            log.info("a step was made")
            log.warning("checkpoint %s is damaged", "x")
            warnings.warn("this will change", stacklevel=1)
            os.write(2, b"compiled code complains\n")
            subprocess.run(["sh", "-c", "echo a child complains >&2"], check=True)
    text = path.read_text()
    assert f" WARNING slice-1 (process {os.getpid()}): checkpoint x is damaged\n" in text
    assert "this will change" in text
    assert "compiled code complains\na child complains\n" in text
    assert "a step was made" not in text


def test_what_was_there_before_is_kept_and_restored(tmp_path: Path) -> None:
    path, root = tmp_path / "workers.log", logging.getLogger()
    path.write_text("of an earlier session\n")
    before = root.handlers[:], root.level, warnings.showwarning, os.fstat(2).st_ino
    with warnings_to(str(path), "slice-0"):
        root.error("one")
    assert (root.handlers, root.level, warnings.showwarning, os.fstat(2).st_ino) == before
    assert path.read_text().startswith("of an earlier session\n")
    assert path.read_text().count("\n") == 2
