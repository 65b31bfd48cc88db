"""All rows of a store."""

from fasttrace.store.query import Readable
from fasttrace.store.texts import RELATIONS


def every_row(store: Readable) -> dict[str, list[dict]]:
    """{relation: its rows in order}, from one connection."""
    with store.reading() as con:
        return {name: con.sql(f"FROM {name} ORDER BY ALL").to_arrow_table().to_pylist() for name in RELATIONS}
