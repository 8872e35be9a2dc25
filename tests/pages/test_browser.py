"""The browser that tests look at pages with sees what a reader sees, and hears what goes wrong."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.pages.browser import BrowserError, Tab, find_chromium


def page(folder: Path, body: str) -> str:
    path = folder / "page.html"
    path.write_text(f"<!doctype html><meta name=viewport content='width=device-width'><body>{body}")
    return path.as_uri()


def test_a_pages_text_is_what_is_seen_of_it(browser: Tab, tmp_path: Path) -> None:
    url = page(tmp_path, "<h1>Seen</h1><p hidden>unseen</p><script>document.body.append('later')</script>")
    assert browser.page_text(url).split() == ["Seen", "later"]
    assert (browser.errors, browser.requests) == ([], [url])


def test_what_goes_wrong_in_a_page_is_heard(browser: Tab, tmp_path: Path) -> None:
    script = "console.error('this', 1); console.log('fine'); setTimeout(() => { throw new Error('that') })"
    url = page(tmp_path, f"<img src=missing.png><img src=https://example.org/a.png><script>{script}</script>")
    browser.open(url)
    browser.until("document.readyState == 'complete'")
    assert sorted(error.partition("\n")[0] for error in browser.errors) == [
        "Error: that",
        f"Failed to load resource: net::ERR_FILE_NOT_FOUND {(tmp_path / 'missing.png').as_uri()}",
        "Failed to load resource: net::ERR_NAME_NOT_RESOLVED https://example.org/a.png",
        "this 1",
    ]
    assert "https://example.org/a.png" in browser.requests


@pytest.mark.parametrize(("whole", "height"), [(False, 300), (True, 2000)])
def test_a_picture_is_as_large_as_the_window_or_the_page(
    browser: Tab, tmp_path: Path, whole: bool, height: int
) -> None:
    url = page(tmp_path, "<style>body { margin: 0 }</style><div style='height: 2000px'>high</div>")
    browser.screenshot(url, tmp_path / "page.png", 400, 300, whole=whole)
    assert struct.unpack(">II", (tmp_path / "page.png").read_bytes()[16:24]) == (400, height)


def test_a_page_can_be_used(browser: Tab, tmp_path: Path) -> None:
    field = "<input style='position: fixed; left: 0; top: 0' onkeydown='document.title += event.key'>"
    browser.open(page(tmp_path, field))
    browser.click(10, 10)
    browser.type("words")
    browser.press("Enter", 13)
    assert browser.until("document.title") == "Enter"
    assert browser.until("document.querySelector('input')") is True
    assert browser.evaluate("document.querySelector('input').value") == "words"


def test_an_element_is_clicked_on_wherever_it_is(browser: Tab, tmp_path: Path) -> None:
    button = "<button id=far onclick='document.title = &quot;clicked&quot;'>far down</button>"
    browser.open(page(tmp_path, f"<div style='height: 5000px'></div>{button}"))
    browser.click_on("#far")
    assert browser.until("document.title") == "clicked"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("move = setInterval(() => node.style.top = `${left * 9}px`, 10)", "clearInterval(move)"),
        ("node.disabled = true", "node.disabled = false"),
        ("cover.style.display = 'block'", "cover.style.display = 'none'"),
    ],
    ids=["moves", "is disabled", "is covered"],
)
def test_an_element_is_clicked_on_once_it_can_be(browser: Tab, tmp_path: Path, wrong: str, right: str) -> None:
    """That takes a third of a second; a click before it would miss."""
    cover = "<div id=cover style='display: none; position: fixed; inset: 0; z-index: 9'></div>"
    script = f"""
        let left = 30, move = null;
        onpointerdown = event => document.title = left > 0 || event.target !== node ? 'missed' : 'hit';
        const begin = () => {{
            {wrong};
            const wait = setInterval(() => {{ if (--left === 0) {{ {right}; clearInterval(wait) }} }}, 10);
        }}"""
    browser.open(
        page(tmp_path, f"{cover}<button id=node style='position: absolute'>go</button><script>{script}</script>")
    )
    browser.evaluate("begin()")
    browser.click_on("#node")
    assert browser.until("document.title") == "hit"


def test_pages_share_no_storage(browser: Tab, tmp_path: Path) -> None:
    assert browser.page_text(page(tmp_path, "<script>document.write(document.cookie)</script>")) == ""


def test_what_cannot_be_opened_or_does_not_come_is_an_error(browser: Tab, tmp_path: Path) -> None:
    with pytest.raises(BrowserError, match="ERR_FILE_NOT_FOUND"):
        browser.open((tmp_path / "none.html").as_uri())
    browser.open(page(tmp_path, "here"))
    with pytest.raises(BrowserError, match=r"not true within 0.1 s: window.none; the page says: here"):
        browser.until("window.none", timeout_s=0.1)
    with pytest.raises(BrowserError, match="ReferenceError: nothing is not defined"):
        browser.evaluate("nothing")


def test_a_browser_that_is_named_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVSCALE_CHROMIUM", "no-such-browser")
    with pytest.raises(BrowserError, match="'no-such-browser' given, which is no program here"):
        find_chromium()
