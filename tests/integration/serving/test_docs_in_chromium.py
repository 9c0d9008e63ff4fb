"""The API's documentation in a browser: it works with a token, asks nobody else and breaks none of its own policy."""

from __future__ import annotations

from typing import Any

from guarded_in_thread import running
from served_pages import visiting

TOKEN = "a-token-of-enough-letters"


def test_an_image_is_asked_for_from_the_documentation(browser: Any) -> None:
    with running(token=TOKEN) as endpoint, visiting(browser, f"http://127.0.0.1:{endpoint.port}") as visit:
        page = visit.page
        page.goto(f"http://127.0.0.1:{endpoint.port}/docs")
        page.click("#operations-default-predict .opblock-summary")
        page.click(".try-out__btn")
        for token, status in (("", "401"), (TOKEN, "200")):
            if token:
                page.click(".auth-wrapper button.authorize")
                page.fill(".auth-container input", token)
                page.click(".auth-btn-wrapper button.authorize")
                page.click(".btn-done")
            page.click(".execute")
            page.wait_for_selector(f".live-responses-table .response-col_status:has-text('{status}')")
        assert "predicted_label" in page.inner_text(".live-responses-table")
        # A reload has forgotten the token: it was kept nowhere.
        page.reload()
        page.wait_for_selector("button.authorize.unlocked")
        assert page.evaluate("localStorage.length + sessionStorage.length") == 0
