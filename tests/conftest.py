"""Shared fixtures: a small tokenizer, the real model, and a folder to run commands in. Helpers: tests/support."""

import importlib
import io
import json
import os
import signal
import sys
import threading
from http.server import ThreadingHTTPServer

import numpy as np
import pytest
import torch
from command_line import FACTS, Done
from edit_cases import FACTS as EDITED
from grader import Grader
from small_models import small_model, trained_tokenizer


@pytest.fixture(scope="session")
def small_tokenizer():
    """A byte-level BPE tokenizer of at most 400 tokens, trained on the spot."""
    return trained_tokenizer()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A file of some 4000 words of the small models' facts."""
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    rng = np.random.default_rng(0)
    words = " ".join([EDITED[0].text, EDITED[1].text, "capital France Rome New York and"])
    path.write_text(" ".join(rng.choice(words.split(" "), 4000)))
    return path


def pytest_configure(config):
    """Divide the cores among parallel test processes and the processes that they start, and let Ctrl-C reach both."""
    # A shell starts background commands with SIGINT ignored, nohup with SIGHUP, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
        threads = max(1, len(os.sched_getaffinity(0)) // workers)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        torch.set_num_threads(threads)


def pytest_addoption(parser):
    group = parser.getgroup("fasttrace", "compute as another processor would (tests/processors.py)")
    group.addoption("--threads", type=int, help="threads of every product in every test")
    group.addoption("--linear", choices=("reference", "native", "onednn"), help="ops.linear's product")


@pytest.fixture(autouse=True)
def _threads(request):
    """Set --threads, or one thread for small models: products of 48 x 48 gain nothing from more and lose by waiting."""
    before, wanted = torch.get_num_threads(), request.config.getoption("--threads")
    if wanted is None and "small_tokenizer" in request.fixturenames:
        wanted = 1
    torch.set_num_threads(wanted or before)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _linear(request, monkeypatch):
    """Fix ops.linear's product to --linear, except in the tests of how it chooses."""
    wanted = request.config.getoption("--linear")
    if wanted is not None and request.path.name != "test_linear.py":
        module = importlib.import_module("fasttrace.ops.linear")
        monkeypatch.setattr(module, "_is_faster", lambda name, x, w: name in (wanted, "reference"))


@pytest.fixture(autouse=True)
def _signals():
    """Restore the signal handlers, because a command listens until its process ends."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def smollm2():
    """The default model, SmolLM2-135M, in float32."""
    import fasttrace as ft

    return ft.load_model()


@pytest.fixture(scope="module")
def workplace(small_tokenizer, tmp_path_factory):
    """A folder with a small Llama, facts and a corpus."""
    folder = tmp_path_factory.mktemp("workplace")
    model = small_model("llama", small_tokenizer, torch.float32)
    model.hf.save_pretrained(folder / "model")
    small_tokenizer.save_pretrained(folder / "model")
    (folder / "facts.jsonl").write_text("\n".join(json.dumps(fact) for fact in FACTS))
    (folder / "text.txt").write_text(" ".join(f"{f['prompt']} {f['subject']} {f['target_true']}" for f in FACTS * 40))
    return folder


@pytest.fixture
def grader():
    """A server of `Grader`. `seen` has what it was asked, and `mended` lets it say YES to Paris too."""
    pytest.importorskip("openai", reason="needs the extra judge")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Grader)
    server.seen, server.mended = [], False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def command(monkeypatch, capfd):
    """A function that runs a fasttrace command in this process and asserts its exit code."""
    from fasttrace.cli import main

    def call(*words, code=0, stdin=None):
        monkeypatch.setattr(sys, "argv", ["fasttrace", *words])
        if stdin is not None:
            text = io.StringIO(stdin) if isinstance(stdin, str) else io.TextIOWrapper(io.BytesIO(stdin), "utf-8")
            monkeypatch.setattr(sys, "stdin", text)
        found = 0
        try:
            main()
        except SystemExit as error:
            found = error.code
        done = Done(*capfd.readouterr())
        assert found == code, done.stderr
        return done

    return call


@pytest.fixture
def run(workplace, monkeypatch, command):
    """`command`, run in the workplace with a cache folder of its own."""
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / "cache"))
    return command
