"""Stores of an older schema version: read under this version's names, upgraded in place by the first write.

A change of schema/ raises SCHEMA_VERSION and adds migrations/<version>.sql, which turns a store of the version before
into one of this version. A column that only changes its name is listed in _RENAMED, a new one, which is NULL in
older stores, in _ADDED, one that it lacks in _DROPPED, and a new relation, which is empty in older stores, in _NEW, so
that older stores can be read.
"""

from collections.abc import Iterable, Mapping
from importlib.resources import files

import duckdb

SCHEMA_VERSION = 15
"""Increased by one whenever a relation of schema/ changes."""
OLDEST_VERSION = 5
"""The oldest version that is read and upgraded. A store older than that is refused."""

# Version → relation → {a column's name in the version before: its name since}.
_RENAMED = {6: {"mass_edits": {"landed": "n_edits"}}}
_GENERATED = {
    "generated_before": "VARCHAR",
    "generated_after": "VARCHAR",
    "exact_before": "BOOLEAN",
    "exact_after": "BOOLEAN",
    "prefix_before": "BOOLEAN",
    "prefix_after": "BOOLEAN",
    "judged_after": "BOOLEAN",
    "judge_error": "VARCHAR",
}
# Version → relation → {a column that it adds: its type}.
_ADDED = {
    7: {"facts": {"target_prefix": "VARCHAR"}},
    8: {
        "facts": {"counterfactual_subject": "VARCHAR[]", "counterfactual_prompt": "VARCHAR[]"},
        "traces": {
            "p_false_clean": "DOUBLE",
            "p_false_noised": "DOUBLE",
            "logit_diff_clean": "DOUBLE",
            "logit_diff_noised": "DOUBLE",
            "logprob_clean": "DOUBLE",
            "logprob_noised": "DOUBLE",
            "kl_noised": "DOUBLE",
            "counterfactuals": "VARCHAR[]",
        },
        "trace_cells": {
            "head": "INTEGER",
            "p_false_restored": "DOUBLE",
            "p_false_sem": "DOUBLE",
            "logit_diff_restored": "DOUBLE",
            "logit_diff_sem": "DOUBLE",
            "logprob_restored": "DOUBLE",
            "logprob_sem": "DOUBLE",
            "kl_restored": "DOUBLE",
            "kl_sem": "DOUBLE",
        },
        "trace_samples": {"head": "INTEGER", "logit_diff_restored": "DOUBLE"},
    },
    10: {
        "facts": {
            "probes": 'STRUCT(kind VARCHAR, prompt VARCHAR, answers VARCHAR[], expect VARCHAR, "after" VARCHAR)[]',
            "case_id": "VARCHAR",
            "case_edits": "INTEGER",
            "subject_found": "VARCHAR",
            "meta": "JSON",
        },
        "edit_prompts": {
            "expect": "VARCHAR",
            "answer": "VARCHAR",
            "match_before": "BOOLEAN",
            "match_after": "BOOLEAN",
            "score": "DOUBLE",
        },
    },
    11: {"edit_prompts": _GENERATED, "mass_prompts": _GENERATED},
    12: {"edit_prompts": {"answers": "VARCHAR[]"}, "mass_prompts": {"answers": "VARCHAR[]"}},
    13: {name: {"engine": "VARCHAR"} for name in ("traces", "trace_cells", "trace_effects", "trace_samples")},
    14: {"edits": {"experts": "VARCHAR"}},
}

# Version → relation → the columns of the version before that it has no more.
_DROPPED = {9: {"facts": ("counterfactual_subject", "counterfactual_prompt")}}

# Version → the relations that the version before lacks.
_NEW = {
    10: ("facts_left_out", "mass_prompts"),
    11: ("mass_measures", "mass_norms", "mass_tasks"),
    15: ("trace_routing",),
}


def lacking(version: int) -> set[str]:
    """The relations that a store of `version` lacks."""
    return {name for later in range(version + 1, SCHEMA_VERSION + 1) for name in _NEW.get(later, ())}


def empty(columns: Mapping[str, str]) -> str:
    """A SELECT without rows. columns: {name: DuckDB type}, with names that need no quotes."""
    return f"SELECT {', '.join(f'NULL::{kind} AS {name}' for name, kind in columns.items())} LIMIT 0"


def current_names(columns: Iterable[str], relation: str, version: int) -> dict[str, str]:
    """{column of a relation in a store of `version`: its name in this version}, without those that this lacks."""
    names = {column: column for column in columns}
    for later in range(version + 1, SCHEMA_VERSION + 1):
        renamed = _RENAMED.get(later, {}).get(relation, {})
        dropped = _DROPPED.get(later, {}).get(relation, ())
        names = {old: renamed.get(name, name) for old, name in names.items() if name not in dropped}
    return names


def added(relation: str, version: int) -> dict[str, str]:
    """{column that a store of `version` lacks: its type}."""
    found: dict[str, str] = {}
    for later in range(version + 1, SCHEMA_VERSION + 1):
        found |= _ADDED.get(later, {}).get(relation, {})
        for column in _DROPPED.get(later, {}).get(relation, ()):
            found.pop(column, None)
    return found


def as_current(table: str, relation: str, version: int, columns: Mapping[str, str]) -> str:
    """A SELECT of a relation in a store of `version` as this version has it: its columns, which are NULL where new.

    table: its name in SQL. columns: {name: DuckDB type} in this version.
    """
    if relation in lacking(version):
        return empty(columns)
    new, stored = added(relation, version), {name: name for name in columns}
    for later in range(SCHEMA_VERSION, version, -1):
        before = {name: old for old, name in _RENAMED.get(later, {}).get(relation, {}).items()}
        stored = {name: before.get(found, found) for name, found in stored.items()}
    values = (f"NULL::{new[name]}" if name in new else f'"{found}"' for name, found in stored.items())
    listed = ", ".join(f'{value} AS "{name}"' for value, name in zip(values, columns, strict=True))
    return f"SELECT {listed} FROM {table}"


def upgrade(con: duckdb.DuckDBPyConnection, version: int) -> None:
    """Turn the store of `version` on `con` into one of this version, within the caller's transaction."""
    for later in range(version + 1, SCHEMA_VERSION + 1):
        sql = (files("fasttrace.store") / "migrations" / f"{later}.sql").read_text(encoding="utf-8")
        con.execute(sql).fetchall()
