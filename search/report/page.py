"""A report as one HTML page, which needs nothing but itself: no script, no request, any width, light or dark."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Final

import jinja2

from search.figures.album import Picture
from search.report.content import Report

TEMPLATE: Final = Path(__file__).with_name("page.html.j2")


def render(report: Report) -> str:
    """The page. Whatever a study's texts hold is shown as text."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=_kept_together, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["inline"] = _inline
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(report=report)


def _kept_together(value: object) -> object:
    """A number and its percent sign stay on one line."""
    return value.replace(" %", "\N{NO-BREAK SPACE}%") if type(value) is str else value


def _inline(picture: Picture) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.png).decode("ascii")


def write_page(page: str, path: Path) -> None:
    """Write a page, all of it or nothing: aside first, then in its place. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():  # a pipe or a terminal, which nothing can take the place of
        path.write_text(page, encoding="utf-8")
        return
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(page, encoding="utf-8")
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
