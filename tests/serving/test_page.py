"""The page at `/`, in Chromium: `make test-browser`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.runs import Workspace
from tests.support.servers import Server, random_model, serving

pytestmark = pytest.mark.browser
N_CTX = 4096


@pytest.fixture(scope="module")
def server(workspace: Workspace) -> Iterator[Server]:
    with serving(workspace, random_model(workspace, "paged", n_ctx=N_CTX), "--serve_batch", 1) as server:
        yield server


@pytest.fixture
def page(server: Server) -> Iterator[Any]:
    """The page, opened; whatever it logs or asks of another machine fails the test."""
    from playwright.sync_api import sync_playwright

    # Debian's Chromium where there is one, else the one of `playwright install chromium`.
    found = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        page = browser.new_page()
        wrong: list[str] = []

        def asked(request: Any) -> None:
            if not request.url.startswith((server.url, "data:")):
                wrong.append(request.url)

        page.on("request", asked)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if "policy" in message.text.lower() else None)
        page.goto(server.url)
        yield page
        browser.close()
        assert not wrong


def ended(page: Any) -> None:
    page.wait_for_selector("#generate:not([disabled])", timeout=120_000)


def test_a_person_can_generate_and_the_text_comes_bit_by_bit(page: Any) -> None:
    page.wait_for_selector("#model:text-is('paged')")
    assert "step 7, context 4096 tokens, ok" in page.text_content("#state")
    page.fill("#prompt", "Once <b>upon</b>")
    page.fill("#max_tokens", "200")
    page.fill("#seed", "3")
    page.press("#prompt", "Control+Enter")
    page.wait_for_selector("#text .new", timeout=120_000)
    ended(page)
    first = page.text_content("#text")
    assert first.startswith("Once <b>upon</b>") and len(first) > 30
    assert page.locator("#text b").count() == 0, "text is never taken for HTML"
    assert page.locator("#text .new").count() > 1
    assert "a second" in page.text_content("#speed")
    page.click("#generate")
    ended(page)
    assert page.text_content("#text") == first, "the seed decides"


def test_it_can_be_stopped(page: Any, server: Server) -> None:
    def never_end(route: Any) -> None:
        route.continue_(post_data=json.dumps({**route.request.post_data_json, "min_tokens": 4000}))

    page.route("**/v1/completions", never_end)
    page.fill("#max_tokens", "4000")
    page.fill("#seed", "1")
    page.click("#generate")
    page.wait_for_selector("#text .new", timeout=120_000)
    page.click("#stop")
    ended(page)
    assert page.text_content("#speed") == "stopped"
    server.wait_for("the client disconnected")


def test_what_the_server_refuses_is_shown(page: Any) -> None:
    page.fill("#max_tokens", "5000")
    page.click("#generate")
    ended(page)
    assert "the context of this model is 4096 tokens" in page.text_content("#error")
