"""What tests of the report share: a record, hostile text, and a page's elements."""

from html.parser import HTMLParser
from typing import Any

HOSTILE = (
    "\"><script>alert(1)</script>\n<img src=http://x.invalid/a onerror=alert(1)>\\ \x1b[31m }' \udcff </svg></style>"
)

RECORD: dict[str, Any] = {
    "format": 1,
    "operation": "restore",
    "container": "abc",
    "images": "/cp",
    "outcome": "ok",
    "error": "",
    "began": 1795598853.37,
    "seconds": 10.0,
    "versions": {"grit-runtime": "1.2"},
    "phases": [
        {"name": "begin", "begin": 0.0, "end": 1.0},
        {"name": "criu", "begin": 1.0, "end": 6.0},
        {"name": "memory", "begin": 6.0, "end": 10.0, "bytes": 8 << 30},
        {"name": "huge pages", "begin": 6.0, "end": 8.5, "span": True, "detail": "set X from madvise to always"},
        {"name": "reading", "begin": 7.0, "end": 9.0, "span": True},
    ],
}


def elements(page: str) -> list[tuple[str, dict[str, str]]]:
    """Every element of a page with its attributes; whatever is opened must be closed."""
    parser = _Parser()
    parser.feed(page)
    assert not parser.opened
    return parser.found


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.opened: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "link", "br"):
            self.opened.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag
