"""Serves a store to other processes, with DuckDB's own server."""

import socket
import time
from collections.abc import Callable
from contextlib import suppress

import duckdb

from fasttrace.errors import StoreError
from fasttrace.store import Store
from fasttrace.store.connect import opened
from fasttrace.store.failures import first_line
from fasttrace.store.quack import WRITES, Address
from fasttrace.store.texts import statement

ABANDONED_S = 30.0
"""For how many seconds a session that writes may be silent. The process of one that is longer was killed."""


def serve(store: Store, address: Address, token: str, ready: Callable[[], None]) -> None:
    """Serve a store, which is created if it does not exist, until an exception such as KeyboardInterrupt ends it.

    What was committed is then in the file. ready: called once the server answers.
    Raises StoreError where the store cannot be written, the extension is not installed, or the address cannot be used.
    """
    store.create()
    with opened(store.path, read_only=False, timeout_s=store.timeout_s, memory=store.memory, serves=True) as con:
        with suppress(OSError), socket.create_connection(address.host_and_port, timeout=1):
            # The extension would share the port, and each client would be served by either.
            raise StoreError(f"the server cannot listen at {address}: another one does")
        _listen(con, address, token)
        try:
            ready()
            silent: dict[tuple[object, ...], float] = {}
            while True:
                time.sleep(1)
                now = time.monotonic()
                writers = con.execute(statement("silent_sessions"), {"prefix": WRITES}).fetchall()
                silent = {writer: silent.get(writer, now) for writer in writers}
                if any(now - since > ABANDONED_S for since in silent.values()):
                    # The server cannot end one session, whose locks would stop every other writer. The others' writers
                    # run their transactions again.
                    _stop(con, address)
                    _listen(con, address, token)
        finally:
            _stop(con, address)
            con.execute("CHECKPOINT")


def _listen(con: duckdb.DuckDBPyConnection, address: Address, token: str) -> None:
    try:
        con.execute(
            "CALL quack_serve($address, token := $token, allow_other_hostname := true, disable_ssl := true)",
            {"address": str(address), "token": token},
        ).fetchall()
    except duckdb.Error as error:
        raise StoreError(f"the server cannot listen at {address}: {first_line(error)}") from error


def _stop(con: duckdb.DuckDBPyConnection, address: Address) -> None:
    con.execute("CALL quack_stop($address)", {"address": str(address)}).fetchall()
