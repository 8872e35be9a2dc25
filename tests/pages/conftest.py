"""The browser that the tests of pages share, and a page of it for each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pages.browser import PROGRAMS, VARIABLE, Chromium, Tab, chromium, find_chromium, tab


@pytest.fixture(scope="session")
def running_chromium() -> Iterator[Chromium]:
    """Where none is installed the tests are skipped; but if $CONVSCALE_CHROMIUM names one, it must be there."""
    program = find_chromium()
    if program is None:
        pytest.skip(f"none of {', '.join(PROGRAMS)} is installed, and ${VARIABLE} names no other: .ci/run installs one")
    with chromium(program) as browser:
        yield browser


@pytest.fixture
def browser(running_chromium: Chromium) -> Iterator[Tab]:
    """A page of a real browser, see `tests.pages.browser.Tab`."""
    with tab(running_chromium) as page:
        yield page
