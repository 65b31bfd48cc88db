"""Docstrings as Markdown. A line "name: what it is" becomes an item of a list."""

import re
from typing import Any

import griffe

ITEM = re.compile(r"(?:[a-z_]\w*|[A-Z]\w*\.\w+)(?:, [a-z_]\w*)*: ")


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite an object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """A docstring with a list where it has lines that begin with a name. Their continuation lines are indented."""
    return "\n\n".join(_block(block) for block in text.split("\n\n"))


def _block(block: str) -> str:
    lines = block.splitlines()
    if lines[:1] == ["Arguments:"]:  # from settings; each line of it is indented
        return "\n".join(["**Arguments**", "", *_items([line[4:] for line in lines[1:]])])
    after_a_stop = [True, *(line.endswith((".", ":", ";")) for line in lines)]
    starts = [n for n, line in enumerate(lines) if ITEM.match(line) and after_a_stop[n]]
    if not starts:
        return block
    return "\n".join([*lines[: starts[0]], *([""] if starts[0] else []), *_items(lines[starts[0] :])])


def _items(lines: list[str]) -> list[str]:
    """Lines as items of a list. An item may begin within a line, after a full stop."""
    text = "\n".join(lines)
    made = []
    for part in re.split(rf"(?<=[.;])[ \n](?=(?:{ITEM.pattern}|Raises |Returns |Source: ))", text):
        found = ITEM.match(part)
        if found is None:
            made += ["", part]
            continue
        names = ", ".join(f"`{name}`" for name in found[0][:-2].split(", "))
        made.append(f"- {names}: {' '.join(part[found.end() :].split())}")
    return made
