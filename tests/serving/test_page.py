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


@pytest.fixture(scope="module")
def talking(workspace: Workspace) -> Iterator[Server]:
    config = random_model(workspace, "talking", n_ctx=N_CTX)
    with serving(workspace, config, "--serve_batch", 1, "--chat_template", "chatml") as server:
        yield server


def test_a_person_can_converse(talking: Server) -> None:
    from playwright.sync_api import sync_playwright

    found = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        page = browser.new_page()
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(talking.url)
        page.wait_for_selector("#mode_field:not([hidden])")
        page.fill("#max_tokens", "12")
        page.fill("#prompt", "Hello <b>there</b>")
        page.click("#generate")
        page.wait_for_selector(".message.assistant")
        ended(page)
        messages = page.locator(".message .body").all_text_contents()
        assert messages[0] == "Hello <b>there</b>" and len(messages) == 2
        page.reload()
        page.wait_for_selector(".message.assistant")
        assert page.locator(".message .body").all_text_contents() == messages
        page.click("text=again")
        ended(page)
        assert page.locator(".message").count() == 2
        page.click("#fresh")
        assert page.locator(".message").count() == 0
        nodes = page.evaluate(MARKDOWN)
        assert nodes == (
            "<h3>T</h3><p>a <strong>b</strong> <code>c</code> &lt;img src=x&gt; [x](javascript:y) "
            '<a href="https://x.org" rel="noopener noreferrer" target="_blank">d</a></p>'
            "<ul><li>one</li><li>two</li></ul>"
            "<pre><code>x = '&lt;b&gt;'</code></pre><p>end</p>"
        )
        browser.close()
        assert not wrong


MARKDOWN = r"""() => {
  const text = "# T\n\na **b** `c` <img src=x> [x](javascript:y) [d](https://x.org)\n\n- one\n- two\n\n"
    + "```py\nx = '<b>'\n```\nend";
  const box = document.createElement("div");
  box.append(...markdown(text));
  for (const p of box.querySelectorAll("p")) p.removeAttribute("style");
  return box.innerHTML;
}"""
