"""Lists of saved queries, relations and views, for `fasttrace sql` and its prompt."""

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


def listed(saved: Mapping[str, Any]) -> "pa.Table":
    """The saved queries, the user's own first: name, kind, answers, grain, parameters, about_parameters."""
    import pyarrow as pa

    from fasttrace.store.texts import RELATIONS

    rows = [
        {
            "name": one.name,
            "kind": one.kind,
            "answers": one.header.what,
            "grain": one.header.grain,
            "parameters": one.parameters,
            "about_parameters": one.header.parameters,
        }
        for one in sorted(saved.values(), key=lambda one: (one.kind != "own", one.kind != "query", one.name))
        if one.name not in RELATIONS
    ]
    return pa.Table.from_pylist(rows)


def rendered(table: "pa.Table") -> str:
    """`listed` as paragraphs, because sentences are too long for columns."""
    from rich.console import Console

    width = min(Console().width, 100)
    lines = []
    for row in table.to_pylist():
        kind = {"own": "  (yours)", "view": "  (view)"}.get(row["kind"], "")
        lines.append(" ".join([row["name"], *(f"{name}=…" for name in row["parameters"])]) + kind)
        parameters = f"Parameters: {row['about_parameters']}" if row["about_parameters"] else ""
        for text in (row["answers"], row["grain"] and f"Grain: {row['grain']}", parameters):
            lines += textwrap.wrap(text, width, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines) + "\n"


def relations_of(store: Any, saved: Mapping[str, Any]) -> "pa.Table":
    """Every relation of the store and view of the analysis: kind, n_rows (NULL for a view), n_columns, what it is."""
    import pyarrow as pa

    from fasttrace.analysis.relation import CHAIN
    from fasttrace.analysis.saved import columns_of

    table = store.relations()
    rows = table.to_pylist()
    columns = columns_of(store)
    rows += [{"relation": name, "kind": "view", "n_columns": len(columns[name])} for name in CHAIN]
    kinds = {field.name: field.type for field in table.schema} | {"what": pa.string()}
    for row in rows:
        row["what"] = saved[row["relation"]].header.what if row["relation"] in saved else None
    return pa.Table.from_pylist(rows, schema=pa.schema(list(kinds.items())))
