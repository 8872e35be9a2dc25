from __future__ import annotations

import json
import resource
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.ledger import Ledger, LedgerError, read_ledger


def fill(folder: str, events: int = 3) -> None:
    with Ledger(folder) as ledger:
        for number in range(events):
            ledger.append("budget_opened", budget=f"b{number}", value=number / 3)


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_what_was_appended_is_read_back(kind: str, tmp_path: Path) -> None:
    folder = str(tmp_path / "s") if kind == "file" else f"memory://{tmp_path}/s"
    fill(folder)
    records = read_ledger(folder)
    assert [(record.seq, record.event, record["budget"], record["value"]) for record in records] == [
        (0, "budget_opened", "b0", 0.0),
        (1, "budget_opened", "b1", 1 / 3),
        (2, "budget_opened", "b2", 2 / 3),
    ]
    with Ledger(folder) as ledger:
        assert ledger.records == records
        assert ledger.append("session_ended").seq == 3


def test_a_folder_without_a_ledger_has_no_events(tmp_path: Path) -> None:
    assert read_ledger(str(tmp_path / "none")) == []


@given(cut=st.integers(min_value=1, max_value=400))
def test_a_ledger_cut_off_anywhere_is_read_up_to_its_last_whole_event_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    fill(str(folder), events=4)
    path = folder / "ledger.jsonl"
    content = path.read_bytes()[: -min(cut, path.stat().st_size)]
    path.write_bytes(content)
    whole = content.count(b"\n")
    assert len(read_ledger(str(folder))) == whole
    with Ledger(str(folder)) as ledger:
        ledger.append("session_started")
    assert [record.event for record in read_ledger(str(folder))] == ["budget_opened"] * whole + ["session_started"]


def test_garbage_after_the_last_event_is_passed_over(tmp_path: Path) -> None:
    fill(str(tmp_path))
    with (tmp_path / "ledger.jsonl").open("ab") as file:
        file.write(b"\x00\x00\x00\n")
    assert len(read_ledger(str(tmp_path))) == 3


def test_a_damaged_event_in_the_middle_is_refused_with_its_line(tmp_path: Path) -> None:
    fill(str(tmp_path))
    path = tmp_path / "ledger.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "{broken", lines[2]]) + "\n")
    with pytest.raises(LedgerError, match=r"ledger\.jsonl: line 2 is not an event; restore .* --fresh"):
        read_ledger(str(tmp_path))


def test_a_missing_event_is_refused(tmp_path: Path) -> None:
    fill(str(tmp_path))
    path = tmp_path / "ledger.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[2]]) + "\n")
    with pytest.raises(LedgerError, match="line 2 is event 2, expected 1"):
        read_ledger(str(tmp_path))


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with Ledger(str(tmp_path)), pytest.raises(LedgerError, match="another search of this study is running"):
        Ledger(str(tmp_path))
    Ledger(str(tmp_path)).close()


def test_an_event_is_on_disk_when_append_returns(tmp_path: Path) -> None:
    with Ledger(str(tmp_path)) as ledger:
        ledger.append("trial_suggested", trial="a")
        assert json.loads((tmp_path / "ledger.jsonl").read_text())["trial"] == "a"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_event_whose_writing_failed_or_was_interrupted_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(descriptor: int) -> None:
        raise error

    with Ledger(str(tmp_path)) as ledger:
        ledger.append("session_started")
        with monkeypatch.context() as patch:
            patch.setattr("search.ledger.os.fsync", fail)
            with pytest.raises(LedgerError if isinstance(error, OSError) else KeyboardInterrupt):
                ledger.append("trial_suggested", trial="a")
        ledger.append("session_ended")
    assert [(record.seq, record.event) for record in read_ledger(str(tmp_path))] == [
        (0, "session_started"),
        (1, "session_ended"),
    ]


def test_a_full_disk_is_one_line_and_the_ledger_stays_whole(tmp_path: Path) -> None:
    fill(str(tmp_path))
    size = (tmp_path / "ledger.jsonl").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with Ledger(str(tmp_path)) as ledger:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
        try:
            with pytest.raises(LedgerError, match="cannot be written"):
                ledger.append("trial_suggested", trial="a" * 100)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, ignored)
        ledger.append("session_ended")
    assert len(read_ledger(str(tmp_path))) == 4
