"""The upload page: one HTML file with its style and its script in it, and the policy that allows nothing else.

Its sources lie in `page/`. They are joined when the process starts and never change, and hold nothing of the model:
the page asks `/model` for it, with the token where one is needed.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

STYLE = "page.css"
SCRIPTS = ("dom.js", "words.js", "server.js", "model.js", "viewer.js", "answer.js", "list.js", "csv.js", "main.js")
"""In the order in which they stand in the page; each may use what stands before it."""


@cache
def page_html() -> tuple[bytes, str]:
    """The page and the value of its `Content-Security-Policy`.

    Returns:
        HTML in UTF-8, and a policy under which only its own script and style run, only pictures made in memory are
        shown, and only the server that it came from is asked.
    """
    style = _source(STYLE)
    script = "(() => {\n'use strict';\n" + "\n".join(map(_source, SCRIPTS)) + "\n})();\n"
    page = _source("page.html").replace("/* STYLE */", style, 1).replace("/* SCRIPT */", script, 1)
    policy = (
        "default-src 'none'",
        f"script-src {_hash(script)}",
        f"style-src {_hash(style)}",
        "img-src blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # No text can become markup or code: what would do so throws, in the browsers that know this.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
    return page.encode(), "; ".join(policy)


def _source(name: str) -> str:
    return (files("pipelines.serving") / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
