"""The reference of a study's fields is whole, and a table."""

from __future__ import annotations

import sys

import pytest

from search import cli
from search.complaints import fields_of
from search.reference import reference
from search.study import Study


def rows() -> dict[str, tuple[str, str]]:
    lines = reference().splitlines()
    assert lines[:2] == ["| field | default | meaning |", "| --- | --- | --- |"]
    cells = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines[2:]]
    return {field.strip("`"): (default, meaning) for field, default, meaning in cells}


def test_every_field_has_a_row_that_says_what_it_means() -> None:
    found = rows()
    assert list(found) == [".".join(path) for path in fields_of(Study)]
    assert all(meaning for _, meaning in found.values())


@pytest.mark.parametrize(
    ("field", "default"),
    [
        ("name", "required"),
        ("data.source", "required"),
        ("training", ""),
        ("training.momentum", "`0.9`"),
        ("training.warmup", '`{"fraction": 0.05}`'),
        ("data.path", "`null`"),
        ("storage", '`"runs"`'),
    ],
)
def test_defaults_are_shown_as_a_study_file_has_them(field: str, default: str) -> None:
    assert rows()[field][0] == default


def test_the_command_prints_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["convscale", "reference"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code
    assert capsys.readouterr().out == reference() + "\n"
