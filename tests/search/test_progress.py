"""The progress view: a live panel on a terminal, plain lines elsewhere, whatever happens in the search."""

import errno
import io
import logging
from collections.abc import Sequence

import pytest
from rich.console import Console

from search.ledger import Record
from search.progress import PlannedBudget, ProgressView
from tests.search.ledgers import BUDGETS, label, synthetic_records

PLANNED = tuple(PlannedBudget(label(flops), flops, 6) for flops in BUDGETS)


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def fed(records: Sequence[Record], *, before: int = 0, terminal: bool = False, width: int = 100) -> str:
    """What a console shows of the records after the first `before`, which an earlier session left."""
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal)
    with ProgressView(console, records[:before], budgets=PLANNED, clock=Clock()) as view:
        for record in records[before:]:
            view.feed(record)
    return console.file.getvalue()


def panel(records: Sequence[Record], width: int = 100) -> list[str]:
    """The lines of the live panel after these records."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    view = ProgressView(console, budgets=PLANNED, live=False, clock=Clock())
    for record in records:
        view.feed(record)
    console.file.truncate(0)
    console.file.seek(0)
    console.print(view.panel())
    return console.file.getvalue().splitlines()


def event(records: Sequence[Record], name: str, **fields: object) -> Record:
    return Record(len(records), records[-1].time + 1, name, dict(fields))


def test_off_a_terminal_each_event_that_matters_is_one_line_without_escape_codes() -> None:
    records = synthetic_records(trials=6, fail=2)
    text = fed(records)
    lines = text.splitlines()
    assert "\x1b" not in text
    assert len(lines) == 3 + 18 + 3 + 1  # budgets opened, trials, budgets closed, the end
    assert lines[0] == "budget 2e11 FLOPs: 6 trials of F0 (22.8 epochs), F1 (12.1 epochs), F3 (6.24 epochs)"
    assert lines[1] == "[1/6] 2e11-FLOPs-000: F0, 22.8 epochs, learning rate 0.2: held-out loss 0.965"
    assert lines[7].startswith("budget 2e11 FLOPs done: best F0, 22.8 epochs, learning rate 0.2: loss ")
    assert lines[-1] == "digits run-1 done in 0.0 s"


def test_lines_are_never_wrapped_off_a_terminal() -> None:
    records = synthetic_records(trials=6, fail=2)
    assert len(fed(records, width=30).splitlines()) == len(fed(records, width=200).splitlines())


def test_a_failing_trial_says_why_on_one_line() -> None:
    records = synthetic_records(trials=6, fail=2)
    (failed,) = (record for record in records if record.get("outcome") == "failed")
    failed["result"]["error"] = "RuntimeError: out of memory\n  at step 3"
    (line,) = (line for line in fed(records).splitlines() if "failed" in line)
    assert line.endswith("failed at step 28: RuntimeError: out of memory at step 3")
    assert "RuntimeError: out of memory at step 3" in fed(records, terminal=True, width=200)


def test_a_lost_attempt_is_told_and_leaves_the_running_trials() -> None:
    records = synthetic_records(trials=6, until=6)
    assert any("━" in line for line in panel(records))
    lost = [*records, event(records, "trial_lost", trial="2e11-FLOPs-000", kind="crashed", reason="killed", attempt=1)]
    assert "2e11-FLOPs-000 crashed: killed" in fed(lost)
    assert not any("━" in line for line in panel(lost))
    back = event(lost, "trial_started", trial="2e11-FLOPs-000", slice=0, attempt=2, step=100, wait_s=0.1)
    assert "2e11-FLOPs-000 goes on from step 100 (attempt 2)" in fed([*lost, back])


def test_a_failed_trial_that_is_tried_again_is_told_of() -> None:
    records = synthetic_records(trials=1, fail=0)[:9]
    again = [*records, event(records, "trial_reopened", trial="2e11-FLOPs-000")]
    assert fed(again).splitlines()[-1] == "2e11-FLOPs-000 failed before; it is tried again"
    assert "1 failed" in fed(records, terminal=True)
    assert "1 failed" not in "\n".join(panel(again))


def test_notes_are_shown_on_and_off_a_terminal() -> None:
    for terminal in (False, True):
        console = Console(file=io.StringIO(), width=80, force_terminal=terminal)
        with ProgressView(console) as view:
            view.note("tracking: http://host:5000 cannot be reached")
        assert "tracking: http://host:5000 cannot be reached" in console.file.getvalue()


def test_a_resumed_study_begins_with_what_is_done_and_repeats_none_of_it() -> None:
    records = synthetic_records(trials=6)
    text = fed(records, before=30)
    ended = sum(record.event == "trial_ended" for record in records[:30])
    assert text.splitlines()[0] == f"continuing digits run-1: {ended} trials already ended, 1 to go on with"
    assert text.count("[1/6]") == 2  # of the two budgets to come


def test_the_panel_shows_budgets_running_trials_and_the_best_so_far() -> None:
    records = synthetic_records(trials=6, fail=2)
    (at,) = (r.seq for r in records if r.event == "trial_progressed" and r["trial"] == "6e11-FLOPs-001")
    lines = [line.strip("│ ").split() for line in panel(records[: at + 1])]
    assert ["2e11", "FLOPs", "6/6", "F0", "22.8", "0.2", "0.965"] in lines
    assert ["1.8e12", "FLOPs", "0/6", "-"] in lines
    (running,) = (line for line in lines if "407/815" in line)
    assert running[:4] == ["1", "F1", "36.3", "0.2"]
    assert running[-1] == "4,830"
    assert lines[-2][:2] == ["elapsed", "0.0"]
    assert lines[-2][-2:] == ["1", "failed"]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_panel_fits_the_terminal(width: int) -> None:
    lines = panel(synthetic_records(trials=6, until=60), width)
    assert all(len(line) == width for line in lines)
    assert any("1.8e12 FLOPs" in line for line in lines)


def test_many_slices_are_cut_short() -> None:
    records = synthetic_records(trials=30, until=3)
    for place in range(20):
        trial = f"2e11-FLOPs-{place:03d}"
        suggested = next(r for r in synthetic_records(trials=30) if r.get("trial") == trial)
        records.append(suggested)
        records.append(event(records, "trial_started", trial=trial, slice=place, attempt=1, step=0, wait_s=0.0))
    assert any("and 8 more" in line for line in panel(records))


def test_time_left_follows_the_flops_of_this_session_only() -> None:
    records, clock = synthetic_records(trials=6, fail=None), Clock()
    cut = next(r.seq for r in records if r.event == "budget_closed") + 1
    view = ProgressView(Console(file=io.StringIO()), records[:cut], budgets=PLANNED, live=False, clock=clock)
    view.start()
    assert view.time_left() is None
    after = next(r.seq for r in records if r.event == "budget_closed" and r.seq > cut) + 1
    for record in records[cut:after]:
        view.feed(record)
    clock.now += 60
    # 6 trials of 6e11 FLOPs (about: one or two may have diverged early) took 60 s; 6 of 1.8e12 are left
    assert view.time_left() == pytest.approx(180, rel=0.02)
    for record in records[after:]:
        view.feed(record)
    assert view.time_left() == 0


def test_nothing_is_left_of_a_variant_that_the_study_has_taken_out() -> None:
    records, clock = synthetic_records(trials=2, budgets=[2e11]), Clock()
    second = next(record.seq for record in records if record.get("variant") == "F1")
    view = ProgressView(Console(file=io.StringIO()), live=False, clock=clock)
    for record in records[: second + 1]:
        view.feed(record)
    clock.now += 60
    assert view.time_left() == pytest.approx(60, rel=0.02)
    opened = next(record for record in records if record.event == "budget_opened")
    fewer = opened.fields | {"trials": 1, "cells": opened["cells"][:1]}
    view.feed(event(records[: second + 1], "budget_opened", **fewer))
    assert view.time_left() == 0


def resumed(records: Sequence[Record], planned: Sequence[PlannedBudget]) -> ProgressView:
    """The view of a study that goes on from these records with other budgets planned."""
    return ProgressView(Console(file=io.StringIO(), width=100), records, budgets=planned, live=False, clock=Clock())


def counts(view: ProgressView) -> list[str]:
    """The panel's column of trials: ended/all, by budget."""
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(view.panel())
    return [line.split()[3] for line in console.file.getvalue().splitlines() if " FLOPs  " in line]


def test_budgets_that_will_be_opened_again_with_a_further_variant_are_left_to_do() -> None:
    records = synthetic_records(trials=3, budgets=[2e11, 2e13], fail=None)
    all_four = frozenset({"F0", "F1", "F3", "F7"})
    planned = [PlannedBudget(label(flops), flops, 4, all_four) for flops in (2e11, 2e13)]
    view = resumed(records, planned)
    assert view.left_flops() == pytest.approx(2e11 + 2e13)
    assert counts(view) == ["3/4", "3/4"]
    opened = next(record for record in records if record.event == "budget_opened")
    f7 = opened["cells"][0] | {"variant": "F7"}
    view.feed(event(records, "budget_opened", **opened.fields | {"trials": 4, "cells": [*opened["cells"], f7]}))
    assert view.left_flops() == pytest.approx(2e11 + 2e13)
    suggested = next(record for record in records if record.event == "trial_suggested")
    view.feed(event(records, "trial_suggested", **suggested.fields | {"trial": "new", "variant": "F7"}))
    view.feed(
        event(records, "trial_ended", trial="new", outcome="finished", result={"heldout_loss": 1.0, "step": 10**9})
    )
    view.feed(event(records, "budget_closed", budget=label(2e11), best="new"))
    assert view.left_flops() == pytest.approx(2e13)
    assert counts(view) == ["4/4", "3/4"]


def test_budgets_that_will_be_opened_again_for_more_trials_are_left_to_do() -> None:
    records = synthetic_records(trials=3, budgets=[2e11])
    assert resumed(records, [PlannedBudget(label(2e11), 2e11, 5)]).left_flops() == pytest.approx(4e11)
    for fewer in (2, 3):
        view = resumed(records, [PlannedBudget(label(2e11), 2e11, fewer, frozenset({"F0", "F1", "F3"}))])
        assert (view.left_flops(), counts(view)) == (0, ["3/3"])


def test_a_budget_that_ran_out_of_combinations_is_not_left_to_do() -> None:
    records = synthetic_records(trials=3, budgets=[2e11])
    opened = next(record for record in records if record.event == "budget_opened")
    opened.fields["trials"] = 9
    assert resumed(records, [PlannedBudget(label(2e11), 2e11, 9)]).left_flops() == 0


def test_a_budget_that_the_study_has_taken_out_is_not_left_to_do() -> None:
    records = synthetic_records(trials=3, budgets=[2e11], until=6)
    assert resumed(records, []).left_flops() > 0
    view = resumed(records, [PlannedBudget(label(6e11), 6e11, 1)])
    assert (view.left_flops(), counts(view)) == (6e11, ["0/3", "0/1"])


def test_trials_of_a_variant_taken_out_are_not_counted() -> None:
    records = synthetic_records(trials=3, budgets=[2e11], fail=None)
    console = Console(file=io.StringIO(), width=100)
    view = ProgressView(console, records, live=False, clock=Clock())
    opened, suggested, ended = (
        next(record for record in records if record.event == name)
        for name in ("budget_opened", "trial_suggested", "trial_ended")
    )
    view.feed(event(records, "budget_opened", **opened.fields | {"trials": 4, "cells": opened["cells"][:1]}))
    view.feed(event(records, "trial_suggested", **suggested.fields | {"trial": "new"}))
    view.feed(event(records, "trial_ended", **ended.fields | {"trial": "new"}))
    assert counts(view) == ["2/4"]
    told, line = console.file.getvalue().splitlines()
    assert told == "budget 2e11 FLOPs: 4 trials of F0 (22.8 epochs)"
    assert line.startswith("[2/4] new: F0")


class GoneTerminal(io.StringIO):
    """A terminal that can be written to until it goes away; counts what is tried after that."""

    gone: Exception | None = None
    tries = 0

    def write(self, text: str) -> int:
        if self.gone is not None:
            self.tries += 1
            raise type(self.gone)(*self.gone.args)
        return super().write(text)


GONE = [OSError(errno.EIO, "Input/output error"), ValueError("I/O operation on closed file.")]


@pytest.mark.parametrize("gone", GONE, ids=["gone", "closed"])
@pytest.mark.parametrize("before", [0, 9], ids=["new", "continued"])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_terminal_that_is_gone_from_the_start_is_logged_once_and_ends_nothing(
    gone: Exception, before: int, terminal: bool, caplog: pytest.LogCaptureFixture
) -> None:
    records, file = synthetic_records(trials=6), GoneTerminal()
    file.gone = gone
    console = Console(file=file, force_terminal=terminal)
    with caplog.at_level(logging.ERROR), ProgressView(console, records[:before]) as view:
        for record in records[before:]:
            view.feed(record)
        view.note("a note")
    view.stop()
    assert [record.message for record in caplog.records] == ["the terminal cannot be written to; it is left alone now"]
    assert file.tries == 1
    assert (console._render_hooks, console._live_stack) == ([], [])


@pytest.mark.parametrize("gone", GONE, ids=["gone", "closed"])
@pytest.mark.parametrize("then", ["note", "refresh", "stop"])
def test_a_terminal_that_goes_away_is_logged_once_and_ends_nothing(
    gone: Exception, then: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = GoneTerminal()
    console = Console(file=file, force_terminal=True)
    with caplog.at_level(logging.ERROR), ProgressView(console) as view:
        assert view._live is not None
        file.gone = gone
        if then == "note":
            view.note("a note")
        elif then == "refresh":  # as the panel's own thread does
            view._live.refresh()
        if then != "stop":
            assert file.tries == 1
            view.note("another")
            view.feed(synthetic_records()[0])
            view._live.refresh()
            assert file.tries == 1
    view.stop()
    assert len(caplog.records) == 1
    assert (console._render_hooks, console._live_stack) == ([], [])


def test_on_a_terminal_the_panel_is_drawn_and_left_on_the_screen() -> None:
    text = fed(synthetic_records(trials=6, fail=2), terminal=True)
    assert "\x1b[" in text
    assert "digits run-1" in text
    assert "1.8e12 FLOPs" in text
    assert "[1/6]" not in text  # finished trials are in the panel, not above it


def test_stop_may_be_called_twice_and_before_start() -> None:
    view = ProgressView(Console(file=io.StringIO(), force_terminal=True))
    view.stop()
    view.start()
    view.stop()
    view.stop()
