"""What a command shows of its progress: a display on a terminal, lines elsewhere, and the status file of its store."""

import io
import json
import os
import re
import time

import attrs
import pytest
from rich.console import Console

from fasttrace.cluster.jobs import Member, State
from fasttrace.show import watch as module
from fasttrace.show.progress import duration, worker_rows
from fasttrace.show.running import StatusFile
from fasttrace.show.watch import Watch

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Clock:
    """A time that only the test moves."""

    def __init__(self):
        self.time = 1000.0

    def __call__(self):
        return self.time


class Screen(io.StringIO):
    """Text that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(module, "FRAME_SECONDS", 1e6)  # the test beats itself
    monkeypatch.setattr(module, "BEAT_SECONDS", 1e6)
    return Clock()


def plain(clock, store=None):
    return Watch(store, "trace", console=Console(file=io.StringIO(), width=100), now=clock)


def live(clock, store=None):
    console = Console(file=Screen(), width=100, _environ={"TERM": "xterm"})
    return Watch(store, "trace", console=console, now=clock)


def lines(watch):
    return watch.console.file.getvalue().splitlines()


def shown(watch):
    """The last frame of a display."""
    text = watch.console.file.getvalue()
    return ANSI.sub("", text[text.rindex("\x1b[2K") :] if "\x1b[2K" in text else text)


def pool_state(clock, workers=4, **changes):
    members = [
        Member(f"worker {n + 1}", host=f"node-{n % 2}", pid=100 + n, state="computes 8", since=clock.time - n, done=n)
        for n in range(workers)
    ]
    given = {"address": "10.0.0.1:6379", "dashboard": "10.0.0.1:8265", "members": members, "begun": clock.time}
    return State(**given | {"pieces": 64, "size": 2000, "cost": 1e12} | changes)


def test_a_bar_without_a_terminal_says_how_it_goes_once_a_minute(clock):
    with plain(clock) as watch:
        with watch.bar("Tracing", 2000) as done:
            done(0)
            for _ in range(130):
                clock.time += 1
                done(3)
                watch.beat()
        said = lines(watch)
    assert said == [
        "Tracing: 30 of 2,000 facts, 3.0/s, 11 min left",
        "Tracing: 210 of 2,000 facts, 3.0/s, 10 min left",
        "Tracing: 390 of 2,000 facts, 3.0/s, 9 min left",
        "Tracing: 390 of 2,000 facts in 2 min, 3.0/s",
    ]


def test_a_quick_command_says_nothing_without_a_terminal(clock):
    with plain(clock) as watch:
        with watch.bar("Tracing", 20) as done:
            clock.time += 5
            done(20)
            watch.beat()
        with watch.stages() as report:
            report("sampling", 10, 10)
            report("moments", 20, 20)
    assert lines(watch) == []


def test_workers_without_a_terminal(clock):
    state = pool_state(clock, said=["worker 2 on node-1 ended; its work is tried again"], retries=1)
    with plain(clock) as watch:
        watch.tick(state)
        assert lines(watch) == [
            "Ray cluster: 10.0.0.1:6379, dashboard: http://10.0.0.1:8265",
            "worker 2 on node-1 ended; its work is tried again",
        ]
        assert state.said == []
        for one in state.members[1:]:
            one.state = "loads the model"
        clock.time += 60
        watch.tick(state)
        assert lines(watch)[2:] == ["4 workers on 2 machines (loads the model: 3, computes: 1)"]
        with watch.bar("Tracing", 2000) as done:
            done(0)
            clock.time += 60
            done(120)
            state.pieces_done, state.cost_done = 4, 1e11
            watch.tick(state)
    assert lines(watch)[3:] == [
        "Tracing: 0 of 2,000 facts, 4 workers, 1 retry",
        "Tracing: 120 of 2,000 facts, 2.0/s, 18 min left, 4 workers, 1 retry",  # by cost, not by facts
        "Tracing: 120 of 2,000 facts in 1 min, 2.0/s, 4 workers, 1 retry",
    ]
    assert "\x1b" not in "".join(lines(watch))


def test_a_pool_that_is_gone_is_not_shown(clock):
    with plain(clock) as watch:
        watch.tick(pool_state(clock))
        clock.time += 100
        with watch.bar("Timing", None, "measurements") as done:
            done(7)
            clock.time += 60
            watch.beat()
    assert "Timing: 7 measurements" in lines(watch)
    assert watch.status().workers == []


def test_one_display_on_a_terminal(clock):
    state = pool_state(clock, retries=2, said=["worker 3 on node-0 ended; its work is tried again"])
    with live(clock) as watch, watch.bar("Tracing", 2000) as done:
        done(0)
        watch.tick(state)
        clock.time += 60
        done(120)
        state.pieces_done, state.cost_done = 4, 1e11
        watch.tick(state)
        frame = shown(watch)
        assert re.search(r"Tracing .* 120 of 2,000 facts +2\.0/s +1 min +9 min left", frame)
        assert re.search(r"worker 4 +node-1 +computes 8, for 1 min +3 done", frame)
        assert frame.splitlines()[-1].rstrip() == "4 of 64 pieces, 2 retries"
        assert len(frame.splitlines()) == 6
    whole = ANSI.sub("", watch.console.file.getvalue())
    assert whole.count("dashboard: http://10.0.0.1:8265") == 1
    assert whole.count("its work is tried again") == 1
    assert shown(watch).count("120 of 2,000 facts") == 1, "the bar stays"
    assert "worker 4" not in shown(watch)


def test_many_workers_are_summed_up(clock):
    with plain(clock) as watch:
        watch.tick(pool_state(clock, 200))
        doing = watch.status().workers
    console = Console(file=io.StringIO(), width=100)
    for row in worker_rows(doing):
        console.print(row)
    rows = console.file.getvalue().splitlines()
    assert len(rows) == 4
    assert rows[0] == "200 workers on 2 machines (computes: 200)"
    assert rows[1].split()[:2] == ["worker", "200"], "the one that takes longest"


def test_workers_that_load_are_shown_before_any_bar(clock):
    state = pool_state(clock, 2, pieces=0)
    with live(clock) as watch:
        watch.tick(state)
        assert "worker 2" in shown(watch)
        clock.time += 11
        watch.beat()  # a pool that ticks no more
        assert watch.live is None


def test_stdout_stays_apart_from_the_display(clock, capsys, monkeypatch):
    with live(clock) as watch, watch.bar("Tracing", 3):
        print("a result")
        watch.say("above [the] bar")
    assert capsys.readouterr().out == "a result\n"
    assert "above [the] bar" in watch.console.file.getvalue()


def test_forced_colours_make_no_terminal(clock, monkeypatch):
    console = Console(file=io.StringIO(), _environ={"FORCE_COLOR": "1", "TERM": "xterm"})
    assert console.is_terminal
    with Watch(None, "trace", console=console, now=clock) as watch, watch.bar("Tracing", 3) as done:
        done(1)
        clock.time += 20
        watch.beat()
    assert "\x1b" not in console.file.getvalue()
    assert "1 of 3 facts" in console.file.getvalue()


def test_a_full_stderr_stops_nothing(clock):
    with open("/dev/full", "w", buffering=1) as full:
        with Watch(None, "trace", console=Console(file=full), now=clock) as watch, watch.bar("Tracing", 3) as done:
            clock.time += 20
            watch.beat()
            done(3)
            watch.say("nobody hears this")
        full.close = lambda: None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.4, "59 s"), (59.5, "1 min"), (3569, "59 min"), (3599, "1 h 0 min"), (12000, "3 h 20 min"),
     (187200, "2 d 4 h"), (86390, "1 d 0 h")],
)  # fmt: skip
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_the_status_file_is_there_while_a_command_runs(clock, tmp_path):
    path = tmp_path / "s.duckdb.status.json"
    state = pool_state(clock, 2, retries=1, said=["worker 2 ended"])
    with plain(clock, tmp_path / "s.duckdb") as watch:
        watch.beat()
        assert not path.exists(), "not of a quick command"
        with watch.bar("Tracing", 2000) as done:
            done(120)
            clock.time += 1
            watch.tick(state)
            found = json.loads(path.read_text())
            assert (found["verb"], found["title"], found["unit"]) == ("trace", "Tracing", "facts")
            assert (found["done"], found["total"], found["retries"]) == (120, 2000, 1)
            assert (found["pid"], found["said"]) == (os.getpid(), ["worker 2 ended"])
            assert found["dashboard"] == "10.0.0.1:8265"
            assert found["begun"].endswith("+00:00")
            assert found["workers"][1] == {
                "name": "worker 2", "host": "node-1", "pid": 101, "state": "computes 8", "for_seconds": 2, "done": 1
            }  # fmt: skip
            done(5)
            clock.time += 1
            watch.beat()
            assert json.loads(path.read_text())["done"] == 120, "at most every two seconds"
            clock.time += 1
            watch.beat()
            assert json.loads(path.read_text())["done"] == 125
    assert list(tmp_path.iterdir()) == []


def test_the_status_file_is_removed_after_an_error(clock, tmp_path):
    def stopped():
        with plain(clock, tmp_path / "s.duckdb") as watch:
            clock.time += 2
            watch.beat()
            assert len(list(tmp_path.iterdir())) == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list(tmp_path.iterdir()) == []


def test_a_thread_writes_it_where_a_computation_reports_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STATUS_SECONDS", 0.02)
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.01)
    with Watch(tmp_path / "s.duckdb", "trace", console=Console(file=io.StringIO())):
        deadline = time.monotonic() + 10
        while not (tmp_path / "s.duckdb.status.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert list(tmp_path.iterdir()) == []


def test_a_command_leaves_the_file_of_another_that_runs(clock, tmp_path):
    path = tmp_path / "s.duckdb.status.json"
    with plain(clock, tmp_path / "s.duckdb") as watch:
        clock.time += 2
        watch.beat()
        other, edit = StatusFile(path), attrs.evolve(watch.status(), verb="edit", pid=os.getppid())
        other.write(edit)
        assert other.read().verb == "trace"
        path.write_text(path.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {os.getppid()}'))
        other.remove()
        assert path.exists()
        path.write_text(path.read_text().replace(f'"pid": {os.getppid()}', f'"pid": {dead()}'))
        other.write(edit)
        assert other.read().verb == "edit", "that of a command that is gone is replaced"
    assert path.exists()


def dead():
    """The pid of a process that has ended."""
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": 0}', "\xff"])
def test_a_file_that_is_no_status_is_not_removed(clock, tmp_path, text):
    path = tmp_path / "s.duckdb.status.json"
    path.write_text(text, encoding="latin-1")
    assert StatusFile(path).read() is None
    with plain(clock, tmp_path / "s.duckdb"):
        pass
    assert path.exists()


def test_no_file_stops_no_command(clock, tmp_path):
    (tmp_path / "folder.status.json").mkdir()
    for store in (tmp_path / "folder", tmp_path / "none" / "s.duckdb", "/proc/s.duckdb"):
        with plain(clock, store) as watch:
            clock.time += 2
            watch.beat()
    assert [path.name for path in tmp_path.iterdir()] == ["folder.status.json"]


def test_a_served_store_has_no_file(clock, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with plain(clock, "quack:node-0:9494") as watch:
        clock.time += 2
        watch.beat()
        assert list(tmp_path.iterdir()) == []
    assert watch.file is None


def test_a_link_to_a_store_has_the_file_of_the_store(tmp_path):
    (tmp_path / "link.duckdb").symlink_to(tmp_path / "s.duckdb")
    assert StatusFile.of(tmp_path / "link.duckdb").path == tmp_path.resolve() / "s.duckdb.status.json"
