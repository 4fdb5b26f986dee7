"""Serve the fleet page: one HTML file that brings its own style and script, and may load nothing else.

Robots choose their names and what they are told, so the page writes every such text as text; should that ever fail, the
policy sent with it runs no script but the page's own.
"""

import base64
import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Page:
    """An HTML page and the headers it must be sent with."""

    content: bytes
    headers: dict[str, str]


def fleet_page() -> Page:
    """Read the fleet page."""
    text = resources.files("st4vla.serve.watch").joinpath("fleet.html").read_text()
    rules = {
        "default-src": "'none'",
        "script-src": _digest(text, "script"),
        # Bars and captions are sized from numbers, which needs style attributes; they can load nothing.
        "style-src": "'unsafe-inline'",
        "img-src": "'self' data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in rules.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    return Page(text.encode(), headers)


def _digest(text: str, element: str) -> str:
    """Name the page's one inline element of that kind by its hash."""
    found: Any = re.findall(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)
    (content,) = found
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
