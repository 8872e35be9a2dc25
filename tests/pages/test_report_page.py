"""The report in a real browser: on a desk and on phones, asking for nothing."""

from __future__ import annotations

import pytest

from search.report import findings_of, render, report_of, write_page
from search.state import StudyState
from tests.pages.browser import Tab
from tests.search.ledgers import synthetic_records

WIDEST = """
Math.max(...[...document.querySelectorAll("body *")]
    .filter((one) => !one.closest(".scroll, pre"))
    .map((one) => one.getBoundingClientRect().right))
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    records = synthetic_records(trials=21, fail=5)
    state = StudyState.of(records)
    path = tmp_path_factory.mktemp("report") / "report.html"
    found = findings_of(records, state, bootstraps=100)
    write_page(render(report_of(records, state, found.law, pictures=found.pictures)), path)
    return path.as_uri()


@pytest.mark.parametrize(("width", "height", "phone"), [(390, 844, True), (320, 568, True), (1280, 900, False)])
def test_nothing_is_cut_off_at_any_width(browser: Tab, page: str, width: int, height: int, phone: bool) -> None:
    browser.open(page, width, height, phone=phone)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(WIDEST) <= width
    assert browser.evaluate("parseFloat(getComputedStyle(document.body).fontSize)") >= 16


def test_it_opens_offline_and_without_a_complaint(browser: Tab, page: str) -> None:
    browser.open(page)
    assert browser.requests == [page]
    assert browser.errors == []


def test_the_answer_is_on_the_first_screen_of_a_phone(browser: Tab, page: str) -> None:
    browser.open(page, 390, 844, phone=True)
    assert browser.evaluate("document.querySelector('.answer .lead').getBoundingClientRect().bottom") < 844
    assert browser.evaluate("document.querySelectorAll('h2')[0].textContent").strip()


def test_wide_tables_scroll_within_themselves(browser: Tab, page: str) -> None:
    browser.open(page, 390, 844, phone=True)
    assert browser.evaluate(
        "[...document.querySelectorAll('.scroll')].some((one) => one.scrollWidth > one.clientWidth)"
    )
    assert browser.evaluate("[...document.querySelectorAll('table')].every((one) => one.closest('.scroll'))")


def test_every_figure_is_drawn_and_fills_a_phone(browser: Tab, page: str) -> None:
    browser.open(page, 390, 844, phone=True)
    widths = browser.evaluate("[...document.images].map((one) => [one.complete, one.naturalWidth, one.width])")
    assert len(widths) == 6
    assert all(complete and natural >= 2 * shown and shown > 340 for complete, natural, shown in widths)
