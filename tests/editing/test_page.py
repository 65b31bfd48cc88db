"""docs/mass-edits.md says what is so: its commands, options, relations, columns and numbers exist."""

import re
import shlex
from pathlib import Path

from fasttrace.analysis.saved import saved_queries
from fasttrace.cli import cli
from fasttrace.editing import breaks
from fasttrace.editing.mass import MassResult
from fasttrace.store.connect import schema_columns

PAGE = (Path(__file__).parents[2] / "docs/mass-edits.md").read_text(encoding="utf-8")


def test_every_command_and_option_exists() -> None:
    verbs = {name: cli.get_command(None, name) for name in ("mass", "sql", "figures")}
    options = {name: {text for one in verb.params for text in one.opts} for name, verb in verbs.items()}
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    commands = [line.partition("  #")[0] for block in blocks for line in block.splitlines()]
    assert len(commands) == 6
    for command in commands:
        program, verb, *words = shlex.split(command)
        assert program == "fasttrace"
        assert {word for word in words if word.startswith("--")} <= options[verb]
        assert verb != "sql" or words[0] in saved_queries()
    named = re.findall(r"`(--[a-z-]+)", PAGE)
    assert {"--held-out", "--fluency", "--lm-eval"} <= set(named) <= options["mass"]


def test_relations_and_tables_exist() -> None:
    relations = set(re.findall(r"`(mass_\w+)`", PAGE))
    assert relations == {"mass_norms", "mass_measures", "mass_tasks", "mass_edits", "mass_prompts"}
    assert relations <= schema_columns().keys()
    assert "position" in schema_columns()["mass_edits"]
    assert {"measures", "norms", "tasks"} <= MassResult.__dataclass_fields__.keys()


def test_the_numbers_are_those_of_the_code() -> None:
    assert f"sequences of {breaks.HELD_OUT_LENGTH} " in PAGE
    assert f"{breaks.TOKENS} tokens, its\nprompt included, each drawn among the {breaks.TOP_K} likeliest" in PAGE
    assert breaks.WEIGHTS == {2: 2 / 3, 3: 4 / 3}
