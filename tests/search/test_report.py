"""The report: an answer first, honest where there is none, and one page that needs nothing but itself."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from search import cli
from search.figures.album import Picture
from search.formats import number
from search.law import Estimate, HeldOut, Refused, fit_law, runs_of_state
from search.law.forecast import BudgetForecast
from search.ledger import Ledger, Record
from search.report import Report, findings_of, render, report_of, write_page
from search.report.answer import answer_of, interval
from search.report.fitted import fitted_of
from search.report.tables import counts_of, hours
from search.state import StudyState
from search.study import load_study
from tests.search.ledgers import synthetic_records

VOID = {"meta", "img", "br", "hr", "link", "input"}
PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452000000500000003c0802000000")  # the head of one, 80 x 60


class Page(HTMLParser):
    """A page taken apart: its elements with their attributes, and the text of each kind of element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.misplaced: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.misplaced.append(tag)

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", " ".join(data.split())))

    def of(self, tag: str) -> list[str]:
        return [text for kind, text in self.texts if kind == tag]

    def text(self) -> str:
        return " ".join(text for kind, text in self.texts if kind not in ("style", "title"))


def forecast(**changes: object) -> BudgetForecast:
    values: dict[str, object] = {
        "label": "5.4e12 FLOPs", "flops": 5.4e12, "loss": Estimate(0.345, 0.312, 0.381), "beyond": 3.0,
        "variant": "F1", "parameters": 77_000, "epochs": 9.5, "steps": 213,
        "learning_rate": 0.2, "learning_rate_estimate": Estimate(0.18, 0.11, 0.29),
        "optimal_parameters": Estimate(82e3, 61e3, 1.1e5), "optimal_epochs": Estimate(8.8, 6.0, 12.0),
        "size_penalty": 0.012, "core_hours": 0.031, "seconds": 112.0, "search_seconds": 400.0, "trials": 6,
        "notes": ("the best epochs are outside the study's",),
    }  # fmt: skip
    return BudgetForecast(**(values | changes))  # type: ignore[arg-type]


def report(
    records: Sequence[Record], forecasts: Sequence[BudgetForecast] = (), pictures: Sequence[Picture] = ()
) -> Report:
    state = StudyState.of(records)
    table = runs_of_state(state)
    law = fit_law(table, bootstraps=100, leave_out=1) if table.runs else None
    return report_of(records, state, law, forecasts=forecasts, pictures=pictures)


def page_of(records: Sequence[Record], *forecasts: BudgetForecast) -> Page:
    picture = Picture("loss", "Loss", "Dots are trials.", "It falls.", empty=False, png=PNG)
    return Page(render(report(records, forecasts, [picture])))


@pytest.fixture(scope="module")
def whole() -> list[Record]:
    return synthetic_records(trials=21, fail=5)


# ---------------------------------------------------------------- the answer


def test_it_begins_with_what_to_train_with_the_next_budget(whole: list[Record]) -> None:
    page = page_of(whole, forecast())
    assert page.of("h2")[0] == "With 5.4e12 FLOPs, train F1 for 9.5 epochs with learning rate 0.2."
    first = page.text().partition("The law, and how far")[0]
    assert "Expected held-out loss: 0.345 (95 % interval 0.312 to 0.381)." in first
    assert "about 0.031 core-hours, 1 min 52 s" in first
    assert "82k parameters (61k to 110k)" in first
    assert "3 times the largest that was searched" in first
    assert "its loss is about 1.2 % above that of the best size" in first
    assert "6 trials, about 6 min 40 s" in first
    assert "estimated" not in first
    assert "The best epochs are outside the study's." in first


def test_an_estimated_cost_and_a_search_that_may_end_early_are_called_so(whole: list[Record]) -> None:
    text = page_of(whole, forecast(cost_estimated=True, at_most=True)).text()
    assert "1 min 52 s on one slice (estimated, not measured)." in text
    assert "at most 6 trials, about 6 min 40 s" in text


def test_a_budget_that_is_still_being_searched_is_not_counted_and_called_so() -> None:
    records = synthetic_records(trials=9)
    ended = [place for place, record in enumerate(records) if record.event == "trial_ended"]
    part, closed = records[: ended[20] + 1], records[: ended[17] + 2]
    found = findings_of(part, StudyState.of(part), bootstraps=100).law
    before = findings_of(closed, StudyState.of(closed), bootstraps=100).law
    assert found is not None
    assert before is not None
    assert [budget.label for budget in found.budgets] == ["2e11 FLOPs", "6e11 FLOPs"]
    assert found.runs == before.runs
    said = "1.8e12 FLOPs is not finished: the law and its forecasts do not count it."
    assert said in page_of(part).of("li")
    assert said not in page_of(closed).of("li")


def test_further_budgets_follow_in_a_table(whole: list[Record]) -> None:
    page = page_of(whole, forecast(), forecast(label="1e13 FLOPs", flops=1e13, variant="F3"))
    assert "1e13 FLOPs" in page.of("th")
    assert "F3" in page.of("td")


def test_a_budget_that_buys_no_variant_gets_its_loss_and_the_reason(whole: list[Record]) -> None:
    nothing: dict[str, object] = dict.fromkeys(("variant", "parameters", "epochs", "steps", "learning_rate"))
    page = page_of(whole, forecast(**nothing, notes=("no variant's epochs lie within 0.25 to 16",)))
    assert page.of("h2")[0] == "5.4e12 FLOPs buy no variant of the study."
    assert "Expected held-out loss: 0.345" in page.text()
    assert "No variant's epochs lie within 0.25 to 16." in page.text()


def test_where_the_law_refuses_a_variant_is_a_guess_and_called_one() -> None:
    records = synthetic_records(budgets=[2e11, 6e11], trials=9)
    page = page_of(records, forecast(label="1.8e12 FLOPs", loss=Refused("2 budgets given")))
    assert page.of("h2")[0] == "The data cannot say yet what to train next."
    assert "A guess at 1.8e12 FLOPs F1 for 9.5 epochs with learning rate 0.2" in page.text()
    assert "one more budget: a law needs at least three" in page.text()


def test_a_law_that_may_be_flat_is_called_so(whole: list[Record]) -> None:
    flat = page_of(synthetic_records(trials=9, exponent=0.001), forecast())
    assert "Held-out loss L goes with training compute" in flat.text()
    assert "these runs do not show yet that more compute helps" in flat.text()
    assert "these runs do not show yet" not in page_of(whole, forecast()).text()


def test_with_one_budget_it_says_what_is_known_and_what_is_missing() -> None:
    records = synthetic_records(budgets=[2e11], trials=9)
    page = page_of(records)
    best = StudyState.of(records).budgets["2e11 FLOPs"].best
    assert best is not None
    assert page.of("h2")[0] == "The data cannot say yet what to train next."
    assert f"{best.variant} for " in page.text()
    assert "finished trials at two more budgets: a law needs at least three" in page.text()


@pytest.mark.parametrize("until", [1, 2, 3, 6])
def test_before_a_trial_has_finished_it_says_just_that(until: int) -> None:
    page = page_of(synthetic_records(until=until))
    assert page.of("h2")[0] == "No trial has finished yet."


def test_an_unfinished_search_is_called_so_and_a_finished_one_is_not(whole: list[Record]) -> None:
    unfinished = "The search is not over: 13 of 18 trials have ended; the answer may change."
    assert unfinished in page_of(synthetic_records(trials=9, until=70)).text()
    assert "The search is not over" not in page_of(whole, forecast()).text()


def test_a_search_between_two_budgets_is_not_over(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text(STUDY)
    study = load_study(tmp_path / "digits.yaml")
    records = synthetic_records(budgets=[2e11], trials=9)
    between = StudyState.of(record for record in records if record.event != "study_ended")
    assert not counts_of(between).over
    assert counts_of(StudyState.of(records)).over
    counts = counts_of(StudyState.of(records), study)
    assert (counts.over, counts.of_budgets) == (False, " (budget 1 of 3)")
    said = report_of(records, StudyState.of(records), None, study=study).answer.notes
    assert said == ("The search is not over: 9 of 9 trials have ended (budget 1 of 3); the answer may change.",)
    whole = counts_of(StudyState.of(synthetic_records(trials=9)), study)
    assert (whole.over, whole.of_budgets) == (True, "")


def test_every_trial_that_diverged_gives_an_answer_too() -> None:
    records = synthetic_records(trials=4)
    for record in records:
        if record.event == "trial_ended":
            record.fields["outcome"] = "diverged"
            record["result"]["heldout_loss"] = None
    page = page_of(records)
    assert page.of("h2")[0] == "No trial has finished yet."
    assert "12 of 12 trials have ended, none with a held-out loss" in page.text()
    assert "Every learning rate from 0.1 to 0.2 diverged; search below 0.1." in page.text()


def test_a_law_that_refuses_is_no_error_and_its_reasons_are_told_once() -> None:
    state = StudyState.of(synthetic_records(budgets=[2e11, 6e11], trials=9))
    law = fit_law(runs_of_state(state), bootstraps=100)
    assert isinstance(law.chosen, Refused)
    assert not answer_of(state, law, ()).speaks
    text = page_of(synthetic_records(budgets=[2e11, 6e11], trials=9)).text()
    assert text.count(law.chosen.reason) <= 2  # in the answer, and in the list of what cannot be said


def test_a_law_without_a_budget_to_forecast_is_told_and_how_to_ask_it(whole: list[Record]) -> None:
    page = page_of(whole)
    assert page.of("h2")[0] == "No next budget is known: name one to get its forecast."
    assert "The law speaks: held-out loss falls as C^-" in page.text()
    assert 'convscale law STUDY --budget "1e21 FLOPs"' in page.text()


def test_a_second_objective_has_its_front_in_the_answer_and_as_a_table(whole: list[Record]) -> None:
    assert report(whole).fronts is None
    for record in (records := synthetic_records(trials=9)):
        if record.event == "budget_opened":
            record.fields["second_objective"] = "parameters"
    made = report(records, [forecast()])
    assert made.fronts is not None
    assert made.fronts.columns[-1] == "parameters"
    assert {row[0] for row in made.fronts.rows} == {"2e11 FLOPs", "6e11 FLOPs", "1.8e12 FLOPs"}
    assert dict(made.answer.facts)["Cheaper models"].startswith("At 1.8e12 FLOPs, ")


# ---------------------------------------------------------------- the law, and what was run


def test_the_law_is_told_with_its_coefficients_and_their_intervals(whole: list[Record]) -> None:
    law = fit_law(runs_of_state(StudyState.of(whole)), bootstraps=100)
    assert not isinstance(law.chosen, Refused)
    page = page_of(whole)
    assert "exponent α of compute" in page.of("th")
    assert f"{law.chosen.exponent.value:.3g}" in page.of("td")


def test_the_largest_budget_is_foretold_from_the_others() -> None:
    records = synthetic_records(budgets=[2e11 * 2**k for k in range(5)], trials=21)
    best = list(StudyState.of(records).budgets.values())[-1].best
    assert best is not None
    law = fit_law(runs_of_state(StudyState.of(records)), bootstraps=100, leave_out=1)
    assert isinstance(law.held_out, HeldOut)
    (row,) = law.held_out.rows
    (said,) = [text for text in page_of(records).of("p") if text.startswith("Told from the smaller budgets alone")]
    assert "the loss at 3.2e12 FLOPs would have been " in said
    assert re.search(
        rf"it came out as {number(best.heldout_loss)}, so that was [0-9.]+ % too (high|low), (in|out)side", said
    )
    assert said.endswith(f"side the interval {interval(row.predicted)}.")


def test_a_budget_whose_forecast_is_told_is_not_foretold_once_more() -> None:
    """The two are made of the same budgets, but of different resamples: they may contradict each other."""
    records = synthetic_records(budgets=[2e11 * 2**k for k in range(5)], trials=21)
    said = {"loss": {"value": 0.5, "low": 0.4, "high": 0.6}, "variant": "F1", "learning_rate": 0.2}
    made = Record(len(records), 1.8e9, "forecast_made", {"budget": "3.2e12 FLOPs", "forecast": said})
    assert "Told from the smaller budgets alone" in page_of(records).text()
    page = page_of([*records, made])
    assert "Told from the smaller budgets alone" not in page.text()
    assert "Forecasts made before each budget was searched" in page.of("caption")


def test_seeds_are_averaged_in_what_is_told_of_the_best_of_a_budget() -> None:
    records = synthetic_records(budgets=[2e11], trials=9)
    rates = {record["trial"]: 0.2 for record in records if record.event == "trial_suggested"}
    for record in records:
        if record.event == "trial_suggested":
            record.fields.update(learning_rate=0.2, variant="F0")
        elif record.event == "trial_ended":
            record["result"]["heldout_loss"] = 0.5 + 0.1 * (list(rates).index(record["trial"]) % 2)
    made = report(records).best
    assert made is not None
    assert made.rows[0][4] == "0.544 (mean of 9 seeds)"


def test_what_the_law_leaves_out_is_told(whole: list[Record]) -> None:
    law = fit_law(runs_of_state(StudyState.of(whole)), bootstraps=100)
    assert law.left_out > 0
    assert f"{law.left_out} runs without a loss were left out." in page_of(whole).of("p")
    few = synthetic_records(budgets=[2e11 * 2**k for k in range(5)], trials=4)  # F0 has two rates, the others one
    tuning = fit_law(runs_of_state(StudyState.of(few)), bootstraps=100).tuning
    assert tuning.left_out
    assert tuning.text in page_of(few).text()


def test_a_forecast_is_told_to_be_an_average_over_floors(whole: list[Record]) -> None:
    law = fit_law(runs_of_state(StudyState.of(whole)), bootstraps=100)
    assert not isinstance(law.chosen, Refused)
    alone = law.chosen.loss(5.4e12)
    (said,) = [text for text in page_of(whole, forecast()).of("p") if text.startswith("Forecasts average over")]
    assert said.endswith(f"{'above' if alone <= 0.345 else 'below'} the straight line's {number(alone)}.")


def test_a_coefficient_at_a_bound_of_its_fit_is_not_given_as_an_estimate(whole: list[Record]) -> None:
    law = fit_law(runs_of_state(StudyState.of(whole)), bootstraps=100)
    assert not isinstance(law.surface, Refused)
    surface = replace(
        law.surface,
        size_exponent=Estimate(3.0, 0.001, 3.0),
        examples_exponent=Estimate(0.4, 0.3, 0.5),
        irreducible=Estimate(0.0, 0.0, 0.2),
    )
    fitted = fitted_of(replace(law, surface=surface))
    assert fitted.coefficients is not None
    rows = {row[0]: row[1:] for row in fitted.coefficients.rows}
    assert rows["by size and examples: exponent of parameters"] == ("not determined", "-")
    assert rows["by size and examples: irreducible loss"] == ("not determined", "-")
    assert rows["by size and examples: exponent of examples"] == ("0.400", "0.300 to 0.500")
    assert "By size and examples: exponent of parameters" in dict(fitted.refusals)


def test_few_budgets_are_not_said_to_show_that_there_is_no_floor() -> None:
    records = synthetic_records(budgets=[2e11 * 2**k for k in range(5)], trials=21)
    law = fit_law(runs_of_state(StudyState.of(records)), bootstraps=100)
    assert not isinstance(law.straightness, Refused)
    assert law.straightness.chosen == "plain"
    (said,) = [each for each in fitted_of(law).sentences if each.startswith("Nothing speaks against")]
    assert "but 5 budgets " in said


def test_forecasts_made_before_a_budget_was_searched_stand_beside_what_came(whole: list[Record]) -> None:
    opened = [record for record in whole if record.event == "budget_opened"]
    said = {"loss": {"value": 0.5, "low": 0.4, "high": 0.6}, "variant": "F1", "learning_rate": 0.2}
    unknown = {"loss": {"refused": "2 budgets given"}}
    made = [
        Record(len(whole), record.time, "forecast_made", {"budget": record["budget"], "forecast": forecast})
        for record, forecast in zip(opened, (unknown, said, said), strict=True)
    ]
    table = report([*whole, *made]).foretold
    assert table is not None
    assert [row[0] for row in table.rows] == ["6e11 FLOPs", "1.8e12 FLOPs"]
    bests = [budget.best.heldout_loss for budget in StudyState.of(whole).budgets.values() if budget.best]
    assert [row[3] for row in table.rows] == [number(loss) for loss in bests[1:]]
    assert [row[5] for row in table.rows] == ["inside" if 0.4 <= loss <= 0.6 else "outside" for loss in bests[1:]]
    assert [row[6] for row in table.rows] == ["F1 at 0.2"] * 2
    assert report(whole).foretold is None
    still_open = [record for record in whole if record.event != "budget_closed"]
    assert report([*still_open, *made]).foretold is None


def test_every_budget_is_there_with_its_best_trial_and_how_its_trials_ended(whole: list[Record]) -> None:
    made = report(whole)
    assert made.best is not None
    assert made.budgets is not None
    labels = ["2e11 FLOPs", "6e11 FLOPs", "1.8e12 FLOPs"]
    assert [row[0] for row in made.best.rows] == [row[0] for row in made.budgets.rows] == labels
    assert all(int(row[1]) == sum(map(int, row[2:6])) == 21 for row in made.budgets.rows)
    assert made.time is not None
    assert math.isclose(sum(made.time.shares), 1)


def test_what_failed_and_what_diverged_is_told_with_the_reason(whole: list[Record]) -> None:
    page = page_of(whole)
    failed = [line for line in page.of("li") if "RuntimeError: worker died 4 times" in line]
    assert len(failed) == 1
    assert sum("loss is not finite" in line for line in page.of("li")) == 10


def test_many_that_diverged_are_counted_rather_than_listed() -> None:
    made = report(synthetic_records(budgets=[2e11 * 2**k for k in range(6)], trials=21))
    assert len(made.problems.diverged) == 13
    assert re.fullmatch(r"and \d+ more, in results.csv", made.problems.diverged[-1])


def test_how_it_was_made_is_told(whole: list[Record]) -> None:
    whole[0].fields["data_digest"] = "477e71ea035b"
    facts = dict(report(whole).facts)
    assert facts["Study file"] == "digits.yaml"
    assert facts["Data"] == "1,437 to train on, 360 held out, 10 classes"
    assert facts["Digest of the data"] == "477e71ea035b"
    assert facts["Began"] == "2023-11-14 22:13 UTC"
    assert facts["Trained on"] == "cpu, 2 x 1 cores"
    assert "name: digits" in page_of(whole).of("pre")[0]


@pytest.mark.parametrize("loss", [0.0, math.nan])
def test_a_loss_that_has_no_logarithm_is_left_out_of_the_law(loss: float) -> None:
    records = synthetic_records(trials=9)
    for record in records:
        if record.event == "trial_ended" and record["trial"].endswith("001"):
            record["result"]["heldout_loss"] = loss
    found = findings_of(records, StudyState.of(records), bootstraps=100)
    assert found.law is not None
    assert (len(found.law.runs), found.law.left_out) == (24, 3)
    assert not any(picture.empty for picture in found.pictures)


# ---------------------------------------------------------------- the page


def test_the_page_is_whole_and_needs_nothing_but_itself(whole: list[Record]) -> None:
    page = page_of(whole, forecast())
    assert page.misplaced == page.open == []
    assert {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object", "base"} == set()
    addresses = [
        attributes.get(name) for _, attributes in page.elements for name in ("src", "href", "srcset", "action")
    ]
    assert {(address or "data:")[:5] for address in addresses} == {"data:"}
    assert "url(" not in " ".join(page.of("style"))


def test_every_picture_says_what_it_shows_and_keeps_its_place_while_it_loads(whole: list[Record]) -> None:
    pictures = [attributes for tag, attributes in page_of(whole).elements if tag == "img"]
    assert [(one["alt"], one["width"], one["height"]) for one in pictures] == [("Loss. It falls.", "80", "60")]


def test_a_number_stays_with_its_percent_sign(whole: list[Record]) -> None:
    assert "95\N{NO-BREAK SPACE}% interval" in render(report(whole, [forecast()]))


def test_a_picture_without_data_is_left_out(whole: list[Record]) -> None:
    empty = Picture("loss", "Loss", "Dots.", "No trial has finished yet.", empty=True, png=PNG)
    assert report(whole, pictures=[empty]).pictures == ()


def test_headings_go_down_one_level_at_a_time_and_tables_name_their_columns(whole: list[Record]) -> None:
    page = page_of(whole, forecast())
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("table") == tags.count("caption") == tags.count("thead") > 3
    assert all("scope" in attributes for tag, attributes in page.elements if tag == "th")


NASTY = "</pre></li><script>alert('x')</script><img src=x onerror=alert(1)>&amp;\"'"


def test_whatever_the_ledger_holds_is_shown_as_text(whole: list[Record]) -> None:
    records = synthetic_records(trials=6, fail=1)
    for record in records:
        if record.event == "study_opened":
            record.fields.update(dict.fromkeys(("study", "run", "study_file", "study_path", "code_version"), NASTY))
        elif record.event == "trial_ended" and record["result"]["error"]:
            record["result"]["error"] = NASTY
    page = page_of(records, forecast(label=NASTY, variant=NASTY, notes=(NASTY,)))
    assert page.misplaced == page.open == []
    tags = [tag for tag, _ in page.elements]
    assert "script" not in tags
    assert tags.count("img") == 1
    assert NASTY in page.of("pre")[0]
    assert page.text().count("<script>alert('x')</script>") >= 5


def test_passwords_of_addresses_in_the_study_file_are_not_shown(whole: list[Record]) -> None:
    text = (
        "tracking: {uri: 'http://me:s3cr:et@mlflow.example:5000'}  # ask a@b.org\nstorage: s3://key:s3cret@bucket/a@b\n"
    )
    records = [Record(0, 0.0, "study_opened", whole[0].fields | {"study_file": text}), *whole[1:]]
    (shown,) = page_of(records).of("pre")
    assert shown == "tracking: {uri: 'http://mlflow.example:5000'} # ask a@b.org storage: s3://bucket/a@b"


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "made" / "report.html"
    write_page("one", target)
    write_page("two", target)
    assert target.read_text() == "two"

    def full(self: Path, *_: object, **__: object) -> int:
        with self.open("w") as file:
            file.write("half")
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        write_page("three", target)
    assert target.read_text() == "two"
    assert list(target.parent.iterdir()) == [target]


def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_page("page", pipe)
        assert os.read(reader, 100) == b"page"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


# ---------------------------------------------------------------- the command


@pytest.fixture
def called(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Calls convscale in a folder with a study and its run; its exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    Path("digits.yaml").write_text(STUDY)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["convscale", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capfd.readouterr()
        return left.value.code or 0, out, err  # type: ignore[return-value]

    return call


STUDY = """
name: digits
data: {source: digits, image_size: 8}
model: {variants: [F0, F1, F3], width: 0.0625, group_size: 8, stem: small}
budgets: [2e11 FLOPs, 6e11 FLOPs, 1.8e12 FLOPs]
epochs: {min: 0.01, max: 1000}
learning_rate: {base: 0.4, min: 0.025, max: 1.6}
"""


def leave_run(until: int | None = None) -> Path:
    folder, identity = Path("runs/digits/run-1"), load_study(Path("digits.yaml")).identity()
    with Ledger(str(folder)) as ledger:
        for record in synthetic_records(trials=12, until=until):
            more = {"identity": identity} if record.event == "study_opened" else {}
            ledger.append(record.event, **(record.fields | more))
    return folder


def test_the_command_writes_the_report_of_the_newest_run_into_its_folder(
    called: Callable[..., tuple[int, str, str]],
) -> None:
    folder = leave_run()
    assert called("report", "digits.yaml") == (0, "Report: runs/digits/run-1/report.html\n", "")
    page = Page((folder / "report.html").read_text())
    assert re.fullmatch(
        r"With 5\.4e12 FLOPs, train F[013] for [0-9.,]+ epochs with learning rate [0-9.]+\.", page.of("h2")[0]
    )
    assert "core-hours" in page.text().partition("The law, and how far")[0]
    assert sum(tag == "img" for tag, _ in page.elements) == 6


def test_its_forecasts_and_their_cost_are_those_of_the_law_command(
    called: Callable[..., tuple[int, str, str]],
) -> None:
    """The run was on a CPU, and the study is for TPUs now: what the CPU did in a second says nothing of the cost."""
    folder = leave_run()
    Path("digits.yaml").write_text(f"{STUDY}compute: {{device: tpu, accelerator: tpu-v4-8}}\n")
    (found,) = json.loads(called("law", "digits.yaml", "--json")[1])["next_budgets"]
    assert found["cost_estimated"]
    assert called("report", "digits.yaml")[0] == 0
    text = Page((folder / "report.html").read_text()).text()
    assert f"{hours(found['core_hours'])} core-hours, 0.0 s on one slice (estimated, not measured)." in text


def test_it_goes_where_it_is_told_to(called: Callable[..., tuple[int, str, str]]) -> None:
    folder = leave_run()
    assert called("report", "digits.yaml", "--output", "mine.html") == (0, "Report: mine.html\n", "")
    assert Path("mine.html").read_text().startswith("<!DOCTYPE html>")
    assert not (folder / "report.html").exists()


def test_a_search_that_has_only_begun_has_a_report(called: Callable[..., tuple[int, str, str]]) -> None:
    folder = leave_run(until=4)
    assert called("report", "digits.yaml")[0] == 0
    assert Page((folder / "report.html").read_text()).of("h2")[0] == "No trial has finished yet."


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["digit.yaml"], "digit.yaml: no such file; did you mean digits.yaml?"),
        (["digits.yaml", "--output", "."], "--output: . given, which is a folder; name a file, such as report.html"),
        (
            ["digits.yaml", "--output", "no/r.html"],
            "--output: no/r.html given, but there is no folder no; make it first",
        ),
    ],
)
def test_a_mistake_is_told_in_a_line(
    called: Callable[..., tuple[int, str, str]], arguments: list[str], said: str
) -> None:
    leave_run()
    assert called("report", *arguments) == (2, "", f"convscale: {said}\n")


def test_without_a_run_it_says_how_to_start_one(called: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = called("report", "digits.yaml")
    assert (status, out) == (2, "")
    assert err.endswith("start one with: convscale search digits.yaml\n")
    assert len(err.splitlines()) == 1
