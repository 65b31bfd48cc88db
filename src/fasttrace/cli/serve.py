"""The verb serve: a store that many processes read and write at once."""

import json
import os
import secrets
import sys

import click

from fasttrace.errors import UserError

from . import signals
from .deliver import STORE
from .help import command, option
from .options import open_store, options


@command()
@options("json")
@option("--store", type=STORE, metavar="FILE", help="DuckDB file to serve; it is created if it does not exist.")
@option(
    "--address",
    default="localhost:9494",
    show_default=True,
    metavar="HOST[:PORT]",
    help="Where to listen. Anything but localhost is open to the network, and not encrypted.",
)
def serve(as_json: bool, store: str | None, address: str) -> None:
    """Serve a store to commands that name it as `--store quack:HOST:PORT`, until Ctrl-C.

    They need the server's token in the environment variable FASTTRACE_QUACK_TOKEN, and so does the server. If it has
    none, it makes one and prints it.
    """
    from fasttrace.store.quack import TOKEN, Address, place_of
    from fasttrace.store.server import serve as serve_store

    target, place = open_store(store), place_of(f"quack:{address}")
    if isinstance(target.path, Address) or not isinstance(place, Address):
        raise UserError(f"--store: expected a file, got the server {target.path}")
    given = os.environ.get(TOKEN)
    token = given or secrets.token_hex(16)

    def ready() -> None:
        if as_json:
            made = None if given else token
            click.echo(json.dumps({"store": str(target.path), "address": str(place), "token": made}))
            sys.stdout.flush()
            return
        click.echo(f"serving {target.path} at {place}")
        click.echo(f"token:  {'that of ' if given else ''}{TOKEN}{'' if given else f'={token}'}")
        sys.stdout.flush()

    try:
        serve_store(target, place, token, ready)
    except KeyboardInterrupt as stop:
        click.echo(f"fasttrace: stopped; what was committed is in {target.path}", err=True)
        sys.exit(signals.exit_code(stop))
