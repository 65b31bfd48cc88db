"""docs/how-to/own-facts.md says what is so: every format is in its table, and its examples are facts."""

import json
import re
from pathlib import Path
from typing import get_args

import fasttrace as ft
from fasttrace.facts.formats import FORMATS
from fasttrace.settings.study import FactFormat

PAGE = (Path(__file__).parents[2] / "docs/how-to/own-facts.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_every_format_has_a_row() -> None:
    assert sorted(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == sorted(FORMATS)
    assert set(get_args(FactFormat)) == {"auto", *FORMATS}


def test_the_record_is_a_fact() -> None:
    [line] = blocks("json")
    [fact] = ft.load_facts([json.loads(line)])
    assert fact.probes == (ft.Probe("multi-hop", "The country of the Eiffel Tower is", ("Italy",)),)
    assert fact.meta == {"topic": "landmarks"}


def test_the_fact_with_probes_can_be_made() -> None:
    [code] = [block for block in blocks("python") if "ft.Fact(" in block]
    made: dict[str, ft.Fact] = {}
    exec(code[code.index("fact =") : code.index("result =")], {"ft": ft}, made)
    assert [probe.expect for probe in made["fact"].probes] == ["changed", "changed", "unchanged"]
