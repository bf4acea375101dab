"""The page of `--report`, opened and clicked in Chromium: `make test-browser`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt_mesh.experiments.report import write_report
from tests.support.made_up_runs import make_runs

pytestmark = pytest.mark.browser


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    """The page about three runs; whatever it logs, or asks for besides its own file, fails the test."""
    from playwright.sync_api import sync_playwright

    make_runs(tmp_path)
    write_report(str(tmp_path), None)
    address = (tmp_path / "report.html").as_uri()
    # Debian's Chromium where there is one, else the one of `playwright install chromium`.
    found = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        wrong: list[str] = []
        page.on("request", lambda request: None if request.url in (address, "data:,") else wrong.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text))
        page.goto(address)
        yield page
        browser.close()
        assert not wrong


def curve(page: Any, metric: str, kind: str = "curve") -> list[str]:
    """The lines of one chart, a run each."""
    paths = page.locator(f"figure[data-metric='{metric}'] path.{kind}")
    return [paths.nth(i).get_attribute("d") for i in range(paths.count())]


def test_curves_are_smoothed_scaled_and_chosen(page: Any) -> None:
    assert page.locator("figcaption").first.text_content() == "training/loss, training/nll"
    plain = curve(page, "training/loss")
    assert len(plain) == 3 and curve(page, "training/loss", "raw") == []
    page.locator("#smoothing").fill("0.9")
    smooth = curve(page, "training/loss")
    assert smooth != plain and len(curve(page, "training/loss", "raw")) == 3
    page.locator("#smoothing").fill("0")
    assert curve(page, "training/loss") == plain
    page.check("#log-y")
    logarithmic = curve(page, "training/loss")
    assert logarithmic != plain
    page.check("#log-x")
    assert curve(page, "training/loss") != logarithmic
    assert not any("NaN" in path for path in curve(page, "training/loss"))
    page.locator("#runs input").nth(1).uncheck()
    assert len(curve(page, "training/loss")) == 2
    assert curve(page, "training/mfu") == [], "a metric that no run has is not drawn"


def test_a_point_says_its_value(page: Any) -> None:
    chart = page.locator("figure[data-metric='validation/nll'] svg")
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 14, box["y"] + box["height"] / 2)
    tip = page.locator("#tip").text_content()
    assert "base: 1.93" in tip and tip.count("at step 3,000") == 3
    page.mouse.move(5, 5)
    assert page.locator("#tip").is_hidden()


def test_tables_samples_and_configs(page: Any) -> None:
    page.click("[data-tab=evaluations]")
    assert page.locator("#curves").is_hidden()
    tables = page.locator("#evaluations > .scroll > table")
    assert tables.count() == 2
    assert [page.locator("#evaluations h2").nth(i).text_content() for i in (0, 1)] == ["lambada", "validation"]
    assert page.locator("#evaluations th").all_text_contents()[:3] == ["run", "step", "accuracy"]
    assert tables.nth(0).locator("tbody td.number").nth(1).text_content() == "0.1 ± 0.004"
    page.locator("summary").nth(1).click()
    assert page.locator("details").nth(1).locator("tbody tr").count() == 18
    page.click("[data-tab=configs]")
    keys = [row.split("\t")[0] for row in page.locator("#config-table tbody").inner_text().splitlines()]
    assert keys == ["lr", "n_embd", "seed"]
    page.check("#all-keys")
    assert page.locator("#config-table tbody tr").count() == 6
    page.click("[data-tab=samples]")
    assert "step 3,000" in page.text_content("#sample-name")
    assert "</script><b>" in page.text_content("#sample-text"), "text is never taken for HTML"
    page.locator("#sample-step").fill("0")
    assert "sample 1 of step 500" in page.text_content("#sample-text")
    page.select_option("#sample-run", "wide/big")
    assert "step 3,000" in page.text_content("#sample-name")
