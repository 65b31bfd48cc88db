"""Queries on a connection."""

import signal
import threading
import time

import duckdb
import pytest

from fasttrace.store import query

HOURS = "SELECT sum(a.range * b.range) FROM range(10000000) a, range(10000000) b"


@pytest.mark.parametrize("busy", [0, 0.6], ids=["while it runs", "before it runs"])
def test_ctrl_c_stops_a_query(monkeypatch, busy):
    run = query._run

    def run_late(*args):
        time.sleep(busy)
        return run(*args)

    monkeypatch.setattr(query, "_run", run_late)
    main = threading.main_thread().ident
    with duckdb.connect() as con:
        press = threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT))
        give_up = threading.Timer(30, con.interrupt)
        press.start()
        give_up.start()
        with pytest.raises(KeyboardInterrupt):
            query.run_script(con, HOURS, {})
        assert give_up.is_alive()
        give_up.cancel()
