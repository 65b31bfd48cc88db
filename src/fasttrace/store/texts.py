"""The SQL of the store: its relations (schema/) and the statements that read and change them (statements/)."""

from functools import cache
from importlib.resources import files

RELATIONS = (
    "store_schema",
    "runs",
    "facts",
    "facts_left_out",
    "known",
    "traces",
    "trace_cells",
    "trace_samples",
    "trace_routing",
    "trace_effects",
    "edits",
    "edit_prompts",
    "mass_edits",
    "mass_prompts",
    "mass_measures",
    "mass_norms",
    "mass_tasks",
    "moments",
    "benches",
)


@cache
def statement(name: str) -> str:
    """The text of statements/<name>.sql."""
    return (files("fasttrace.store") / "statements" / f"{name}.sql").read_text(encoding="utf-8")


@cache
def schema_sql(relation: str) -> str:
    """The text of schema/<relation>.sql."""
    return (files("fasttrace.store") / "schema" / f"{relation}.sql").read_text(encoding="utf-8")
