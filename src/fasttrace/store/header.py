"""The header of an .sql file: comment lines with its purpose, grain, inputs, parameters and units."""

import re
from typing import NamedTuple

_PARTS = re.compile(r"(?:^|(?<=[.:;]) )(Grain|Inputs?|Parameters?|Models|Units)\b(?:, [^:]*)?:")


class Header(NamedTuple):
    """The parts of a header, empty where the file has none.

    inputs: names of the relations that the file reads. text: the whole header, line by line.
    """

    what: str
    grain: str
    inputs: tuple[str, ...]
    parameters: str
    text: str


def header_of(sql: str, name: str) -> Header:
    """The header of the file `name`.sql. Its `what` is the text before the first part, without the file's name."""
    lines = []
    for line in sql.strip().splitlines():
        if not line.startswith("--"):
            break
        lines.append(line.removeprefix("--").strip())
    first, *rest = _PARTS.split(" ".join(lines))
    parts = dict(zip(rest[::2], rest[1::2], strict=True))
    grain, parameters = parts.get("Grain", ""), parts.get("Parameters", parts.get("Parameter", ""))
    what = first.strip().removeprefix(f"{name}:").strip()
    inputs, _, _ = parts.get("Inputs", parts.get("Input", "")).partition(".")  # text after the first full stop is prose
    names = tuple(one.strip() for one in inputs.split(",") if one.strip())
    return Header(what, grain.strip(), names, parameters.strip(), "\n".join(lines))
