"""docs/facts.md says what is so: every format is in its table, and its examples are facts and settings that exist."""

import json
import re
import shlex
from pathlib import Path
from typing import get_args

import fasttrace as ft
from fasttrace.cli import cli
from fasttrace.facts.formats import FORMATS
from fasttrace.settings.study import FactFormat

PAGE = (Path(__file__).parents[2] / "docs/facts.md").read_text(encoding="utf-8")


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


def test_every_command_and_option_exists() -> None:
    """Each command of the page with its options, and those that its prose names, of any verb that reads facts."""
    verbs = {name: cli.get_command(None, name) for name in ("facts", "edit", "mass", "sql")}
    options = {name: {text for one in verb.params for text in one.opts} for name, verb in verbs.items()}
    commands = [line.partition("  #")[0] for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) == 6
    for command in commands:
        program, verb, *words = shlex.split(command)
        assert program == "fasttrace"
        assert {word for word in words if word.startswith("--")} <= options[verb]
    named = re.findall(r"`(?:fasttrace \w+ )?(--[a-z-]+)", PAGE.replace("\n", " "))
    assert named
    assert set(named) <= set().union(*options.values())
