"""docs/how-to/mass-edits.md says what is so: its options, relations, columns and numbers exist."""

import re
from pathlib import Path

from fasttrace.cli import cli
from fasttrace.editing import breaks
from fasttrace.editing.mass_result import MassResult
from fasttrace.store.connect import schema_columns

PAGE = (Path(__file__).parents[2] / "docs/how-to/mass-edits.md").read_text(encoding="utf-8")


def test_options_that_the_prose_names_exist() -> None:
    verb = cli.get_command(None, "mass")
    assert verb is not None
    named = re.findall(r"`(--[a-z-]+)", PAGE)
    assert {"--held-out", "--fluency", "--lm-eval"} <= set(named) <= {text for one in verb.params for text in one.opts}


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
