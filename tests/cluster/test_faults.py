"""Workers, nodes and drivers are killed, memory runs out and networks fail, and the store has the rows of one process.

The cluster is a real one of two nodes of this machine. `support/faulty` makes pieces wait, so that what is killed has
one.
"""

import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from ray_nodes import Faults, Network, Nodes, Running, environment, until, within

import fasttrace as ft

pytest.importorskip("ray")
spec = spec_from_file_location("kills", Path(__file__).parents[1] / "kills.py")
kills = module_from_spec(spec)
spec.loader.exec_module(kills)

TRACE = kills.COMMANDS["trace"].words[:-2]
STUDY = ("study", "study.toml")
CELLS = "SELECT * FROM trace_cells ORDER BY fact_id, window_size, token_index, layer"
CUT_SECONDS = 60.0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a small Llama, facts, a corpus and a study."""
    folder = tmp_path_factory.mktemp("place")
    kills.make_workplace(folder)
    return folder


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    return Faults(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def nodes(faults):
    """A cluster of two nodes with a CPU each."""
    with Nodes(client=True, **faults.env) as some:
        some.second = some.add()
        yield some


@pytest.fixture
def start(place, nodes, faults):
    """A function that starts a command in `place`, which ends with the test."""
    faults.clear()
    running = []

    def call(*words, **env):
        token = {name: nodes.env[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")}
        own = environment(XDG_CACHE_HOME=str(place / "cache"), **token)
        running.append(Running(*words, cwd=place, env={**own, **env}))
        return running[-1]

    yield call
    for one in running:
        one.stop()


@pytest.fixture(scope="module")
def rows(place):
    """A function that returns the rows of a store, or those that one process writes for a command."""

    def of(*words):
        name = f"alone-{words[0]}"
        store = place / f"{name}.duckdb" if words[0] != "study" else place / name / "study.duckdb"
        if not store.exists():
            where = ("--out", name) if words[0] == "study" else ("--store", store.name)
            env = environment(XDG_CACHE_HOME=str(place / "cache"))
            done = Running(*words, *where, cwd=place, env=env).ended()
            assert done.code == 0, done.stderr
        return kills.stored(store)

    return of


def sentences(done):
    """What a command said on stderr, which has nothing of Ray's."""
    assert not any(word in done.stderr for word in ("Traceback", "raylet", "[20", "Warning", ".cc:", "ray::")), (
        done.stderr
    )
    return done.stderr


def traced(path):
    """The fact_ids of the traces in a store."""
    return set(ft.Store(path).query("SELECT fact_id FROM traces")["fact_id"].to_pylist())


def holds(faults, pieces=2):
    """Wait until so many pieces are begun, which wait."""
    until(lambda: len(faults.pieces()) >= pieces)
    return faults.pieces()


def computed_again(faults):
    """Keys of units that were begun more than once."""
    seen = Counter(key for _, keys in faults.pieces() for key in keys)
    return {key for key, n in seen.items() if n > 1}


@pytest.mark.slow
def test_a_worker_is_killed_in_a_piece(start, rows, nodes, faults, place):
    faults.set("hold")
    running = start(*TRACE, "--workers", nodes.address, "--store", "worker.duckdb")
    [(pid, keys), *_] = holds(faults)
    os.kill(pid, signal.SIGKILL)
    faults.unset("hold")
    done = running.ended()
    assert done.code == 0, done.stderr
    assert "its work is tried again" in sentences(done)
    assert computed_again(faults) == set(keys)
    assert kills.stored(place / "worker.duckdb") == rows(*TRACE)


def test_the_driver_is_killed_and_goes_on(start, rows, nodes, faults, place):
    words = (*TRACE, "--workers", nodes.address, "--store", "driver.duckdb")
    first = start(*words)
    until(lambda: len(faults.pieces()) >= 3)
    faults.set("hold")
    until(lambda: len({pid for pid, _ in faults.pieces()}) == 2)
    time.sleep(1.0)  # for the commits of what is computed
    os.kill(first.pid, signal.SIGKILL)
    first.process.wait()
    until(lambda: not any(node.workers() for node in nodes.nodes))
    before, begun = traced(place / "driver.duckdb"), {key for _, keys in faults.pieces() for key in keys}
    faults.clear()
    done = start(*words).ended()
    assert done.code == 0, done.stderr
    sentences(done)
    again = {key for _, keys in faults.pieces() for key in keys}
    every = traced(place / "driver.duckdb")
    assert set() < before < every
    assert again == every - before, "what was committed is not computed again"
    assert begun - before, "a piece was lost"
    assert kills.stored(place / "driver.duckdb") == rows(*TRACE)


@pytest.mark.slow
def test_memory_lacks_for_some_pieces_and_for_one_fact(start, rows, nodes, faults, place):
    wanted = rows(*TRACE)
    poison = max(traced(place / "alone-trace.duckdb"))
    faults.set("poison", poison)
    words = (*TRACE, "--workers", nodes.address, "--store", "memory.duckdb")
    done = start(*words).ended()
    assert done.code == 2
    [*_, last] = sentences(done).strip().splitlines()
    assert last.startswith(f"fasttrace: workers: the fact '{poison}' could not be computed: the memory of ")
    assert traced(place / "memory.duckdb") == traced(place / "alone-trace.duckdb") - {poison}
    halved = computed_again(faults)
    faults.clear()
    done = start(*words).ended()
    assert done.code == 0, done.stderr
    assert [keys for _, keys in faults.pieces()] == [(poison,)]
    stored = kills.stored(place / "memory.duckdb")
    for relation in ("traces", "trace_cells"):  # the facts of a halved wave may differ in the last bits
        of_waves = (
            [row for row in some[relation] if not any(key in row for key in halved)] for some in (stored, wanted)
        )
        [ours, theirs] = of_waves
        assert ours == theirs != []


@pytest.mark.slow
def test_memory_lacks_for_every_wave(start, rows, nodes, faults, place):
    """Every piece is halved down to single facts. Their values may differ in the last bits (docs/how-to/cluster.md)."""
    wanted = rows(*TRACE)
    faults.set("short", 1)
    done = start(*TRACE, "--workers", nodes.address, "--store", "halves.duckdb").ended()
    assert done.code == 0, done.stderr
    assert "its work is tried again in halves" in sentences(done)
    assert {len(keys) for _, keys in faults.pieces()} > {1}
    found = kills.stored(place / "halves.duckdb")
    assert {name: len(some) for name, some in found.items()} == {name: len(some) for name, some in wanted.items()}
    assert traced(place / "halves.duckdb") == traced(place / "alone-trace.duckdb")
    here, there = (ft.Store(place / name).query(CELLS) for name in ("halves.duckdb", "alone-trace.duckdb"))
    assert here["p_restored"].to_pylist() == pytest.approx(there["p_restored"].to_pylist(), rel=1e-5, abs=1e-8)


@pytest.mark.slow
def test_a_node_is_lost(start, rows, nodes, faults, place):
    faults.set("hold")
    running = start(*TRACE, "--workers", nodes.address, "--store", "node.duckdb")
    holds(faults)
    nodes.second.kill()
    faults.unset("hold")
    done = running.ended()
    nodes.second = nodes.add()
    assert done.code == 0, done.stderr
    assert "its work is tried again" in sentences(done)
    assert kills.stored(place / "node.duckdb") == rows(*TRACE)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(one, marks=pytest.mark.slow) for one in (signal.SIGINT, signal.SIGKILL))]
)
def test_a_local_cluster_ends_with_its_command(start, faults, number):
    faults.set("hold")
    running = start(*TRACE, "--workers", "2", "--store", f"local-{number}.duckdb", **faults.env)
    holds(faults)
    os.kill(running.pid, number)
    done = running.ended(60)
    if number == signal.SIGKILL:
        assert done.code == -number
    else:
        assert done.code == 128 + number
        [*_, last] = sentences(done).strip().splitlines()
        assert last.startswith("fasttrace: stopped; finished work is in the store")
    until(lambda: not within(running.pid), 120)  # Ray's agents look for a head that is gone for a minute


def kill_one(nodes, rng):
    """Kill a worker, whatever it does, or one time in ten the second node, which is started anew."""
    some = [one for node in nodes.nodes for one in node.workers()]
    if some and rng.random() < 0.9:
        with suppress(ProcessLookupError):  # of a study that has just ended
            os.kill(rng.choice(some).pid, signal.SIGKILL)
    else:
        nodes.second.kill()
        nodes.second = nodes.add()


@pytest.mark.slow
def test_random_kills_during_studies(start, rows, nodes, faults, place):
    """A kill comes up to half a second after a piece has begun. Another study follows one that ends before the last."""
    rng, done, studies = random.Random(50), 0, 0
    while done < 50:
        studies += 1
        out = f"killed-study-{studies}"
        running = start(*STUDY, "--workers", nodes.address, "--out", out)
        while running.process.poll() is None and done < 50:
            begun = len(faults.pieces())
            until(lambda: len(faults.pieces()) > begun or running.process.poll() is not None)  # noqa: B023
            time.sleep(rng.uniform(0.0, 0.5))
            if running.process.poll() is None:
                kill_one(nodes, rng)
                done += 1
        ended = running.ended()
        assert ended.code == 0, ended.stderr
        sentences(ended)
        assert kills.stored(place / out / "study.duckdb") == rows(*STUDY)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["silent", "reset"])
def test_a_network_is_cut_for_a_minute(start, rows, nodes, faults, place, how):
    with Network(nodes.client_port) as network:
        faults.set("hold")
        words = (*TRACE, "--workers", f"ray://127.0.0.1:{network.port}", "--store", f"network-{how}.duckdb")
        running = start(*words)
        holds(faults)
        network.cut(how)
        faults.unset("hold")
        time.sleep(CUT_SECONDS)
        network.mend()
        done = running.ended(500)
    assert done.code == 0, done.stderr
    sentences(done)
    assert kills.stored(place / f"network-{how}.duckdb") == rows(*TRACE)
