"""The verb merge: adds stores to one."""

import click

from fasttrace.errors import UserError

from .deliver import STORE
from .help import command, completing_files, option
from .options import open_store, options
from .printed import emit


@command()
@options("json")
@click.argument("stores", nargs=-1, metavar="STORES...", shell_complete=completing_files)
@option("--into", type=STORE, metavar="FILE", help="DuckDB file to add to; it is created if it does not exist.")
def merge(stores: tuple[str, ...], as_json: bool, into: str | None) -> None:
    """Add what STORES have and the store --into lacks, and print what was added from each.

    STORES are DuckDB files, or folders of Parquet files, such as those of machines that each computed a part of one
    sweep or study. They are only read. To merge a store again changes nothing. Where two stores have different values
    under one key, nothing is merged.
    """
    if into is None:
        raise UserError("expected --into FILE, got no store to merge into")
    emit(open_store(into).merge(*stores), as_json)
