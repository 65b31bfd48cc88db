"""Shared fixtures: a small tokenizer, the real model, and a folder to run commands in. More is in tests/oracle."""

import json
import sys

import pytest
import torch
from command_line import FACTS, Done
from small_models import small_model, trained_tokenizer


@pytest.fixture(scope="session")
def small_tokenizer():
    """A byte-level BPE tokenizer of at most 400 tokens, trained here."""
    return trained_tokenizer()


@pytest.fixture(autouse=True)
def _one_thread_for_small_models(request):
    """Products of 48 x 48 gain nothing from threads and lose much to each other's waiting."""
    if "small_tokenizer" not in request.fixturenames:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def smollm2():
    """The real default model, float32."""
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
def run(workplace, monkeypatch, capfd):
    """Runs a fasttrace command in the workplace, in this process, and holds it to its exit code."""
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / "cache"))

    from fasttrace.cli import main

    def call(*words, code=0):
        monkeypatch.setattr(sys, "argv", ["fasttrace", *words])
        found = 0
        try:
            main()
        except SystemExit as error:
            found = error.code
        done = Done(*capfd.readouterr())
        assert found == code, done.stderr
        return done

    return call
