"""Parts of a written report that tests read: its file, its visible text and its embedded data."""

import base64
import gzip
import html
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

from fasttrace.analysis.report import write_report
from fasttrace.store import Store


class Page(HTMLParser):
    """Tags with their attributes, and the visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside.append(tag)

    def handle_endtag(self, tag):
        if self._inside and tag == self._inside[-1]:
            self._inside.pop()

    def handle_data(self, data):
        if not self._inside:
            self.words.append(data)


PROBLEMS = ("error-injection", "tracing-reversal", "fact-erasure", "fact-amplification", "fact-forcing")
METHODS = ("rome", "memit", "ft-1", "ft-5")


def written(store: Store, path) -> SimpleNamespace:
    path = write_report(store, path)
    text = path.read_text(encoding="utf-8")
    return SimpleNamespace(path=path, text=text, page=Page(text), url=path.as_uri(), store=store)


def embedded(text: str) -> dict:
    data = re.search(r'<script type="application/gzip" id="data">(.*?)</script>', text, re.DOTALL).group(1)
    return json.loads(gzip.decompress(base64.b64decode(data)))


def codes(page: str) -> list[tuple[str, str]]:
    """(name, text) of every code block."""
    found = re.finditer(r'<pre tabindex="0" aria-label="([^"]+)"><code>(.*?)</code></pre>', page, re.DOTALL)
    return [(match.group(1), html.unescape(match.group(2))) for match in found]
