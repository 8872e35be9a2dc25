"""Signals: which ones end a search, and when."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any, Final

import pytest

from search.driver import Interrupts

NUMBERS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Puts this process's own handlers back."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("ignored", [{signal.SIGHUP}, {signal.SIGHUP, signal.SIGINT}, set(NUMBERS)])
def test_a_signal_that_was_to_be_ignored_stays_so(ignored: set[signal.Signals]) -> None:
    """As `nohup` and `&` have it: a search in the background outlives the terminal it was started from."""
    before = {number: signal.SIG_IGN if number in ignored else signal.SIG_DFL for number in NUMBERS}
    for number, handler in before.items():
        signal.signal(number, handler)
    with Interrupts() as interrupts:
        signal.signal(signal.SIGTERM, lambda *_: None)  # as Ray does when it comes up
        interrupts.take_over()
        for number in ignored:
            os.kill(os.getpid(), number)
        assert interrupts.count == 0
        for number in set(NUMBERS) - ignored:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
        assert interrupts.count == len(NUMBERS) - len(ignored)
    assert {number: signal.getsignal(number) for number in NUMBERS} == before


def test_the_first_signal_ends_the_search_in_order_and_the_second_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stub:
        """Stands in for the director, the fleet and its broker."""

        interrupted = False
        broker = stop_all = property(lambda self: self)

        def remote(self) -> None:
            pass

    monkeypatch.setattr("ray.get", lambda answer: answer)
    stub: Any = Stub()
    said, told = [], threading.Event()

    def say(line: str) -> None:
        said.append(line)
        told.set()

    with Interrupts() as interrupts, interrupts.search_of(stub, stub, say):
        os.kill(os.getpid(), signal.SIGINT)
        assert told.wait(30)
        assert stub.interrupted
        assert "press Ctrl-C again to end at once" in said[0]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
