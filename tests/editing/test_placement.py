"""Edits of models whose weights are offloaded: bit for bit those of the whole model, each layer brought once a pass."""

import copy
import json
import os
import subprocess
import sys
from collections import Counter

import larger_than_memory
import pytest
import torch
from edit_cases import CONTEXTS, FACTS, contexts_for
from safetensors.torch import load_file
from said_devices import SaidDevices
from small_models import small_model

import fasttrace as ft
from fasttrace.editing.applied import edited_view
from fasttrace.editing.delta import Dense, LowRank, save_delta
from fasttrace.editing.export import export_edit, export_model
from fasttrace.editing.methods.finetune import _ItemLinear
from fasttrace.models import placement, wrap_model
from fasttrace.models.packed import logits, pack
from fasttrace.settings.export import ExportSettings

SCORED = {"essence": 1, "generate": 3}
METHODS = {
    "rome": {"steps": 3, **SCORED},
    "memit": {"steps": 3, "window_size": 3, **SCORED},
    "emmet": {"steps": 2, "window_size": 3, "essence": 0},
    "alphaedit": {"steps": 2, "window_size": 3, "essence": 0, "null_threshold": 0.05, "null_unit": "trace"},
    "pmet": {"steps": 2, "window_size": 3, "essence": 0},
    "ft-1": {"steps": 2, "lr": 5e-3, "epsilon": 1e-2, **SCORED},
    "ft-5": {"steps": 2, "lr": 5e-3, "epsilon": 1e-2, "essence": 0, "after": "rect"},
}


def offloaded(model, how, folder):
    """The same model, offloaded: "parts" has weights in memory and on disk, in and between layers."""
    import accelerate

    if how == "cpu_offload":
        return wrap_model(accelerate.cpu_offload(copy.deepcopy(model.hf), "cpu"), model.tokenizer, "again")
    if how == "disk_offload":
        return wrap_model(
            accelerate.disk_offload(copy.deepcopy(model.hf), folder / "w", "cpu"), model.tokenizer, "again"
        )
    model.hf.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    if how == "disk":
        return ft.load_model(folder / "model", device={"": "disk"})
    base, layers = ("transformer", "h") if model.config.model_type == "gpt2" else ("model", "layers")
    places = {f"{base}.{name}": "cpu" for name, _ in getattr(model.hf, base).named_children() if name != layers}
    places |= {f"{base}.{layers}.{i}": "disk" if i in (1, 2) else "cpu" for i in range(model.n_layers)}
    last = f"{base}.{layers}.{model.n_layers - 1}"
    places |= {
        f"{last}.{name}": "disk" if name == "mlp" else "cpu" for name, _ in model.blocks[-1].layer.named_children()
    }
    del places[last]
    return ft.load_model(folder / "model", device={**places, "lm_head": "cpu"})


def is_released(model):
    """Whether every weight that was brought is let go, and there is one."""
    hooked = [(part, hook) for part in model.hf.modules() for hook in placement._hooks(part)]
    weights = [one for part, hook in hooked for one in part.parameters(recurse=hook.place_submodules)]
    return bool(weights) and all(one.is_meta for one in weights)


def tensors(edit):
    updates = (update for _, update in sorted(edit.updates.items()))
    return [x for update in updates for x in vars(update).values() if isinstance(x, torch.Tensor)]


@pytest.mark.parametrize(
    ("family", "how"),
    [("llama", "parts"), ("gpt2", "cpu_offload"), ("gemma2", "disk"), ("gptj", "disk_offload")],
)
def test_every_method(family, how, small_tokenizer, corpus, tmp_path):
    plain = small_model(family, small_tokenizer, torch.float32)
    other = offloaded(plain, how, tmp_path)
    moments = ft.second_moments(plain, corpus, tokens=400, sequence_length=32, ridge=1e-2, cache_dir=tmp_path)
    for method, settings in METHODS.items():
        asked = {"method": method, "layers": [1, 2], **settings, **contexts_for(method)}
        if not method.startswith("ft"):
            asked["moments"] = moments
        a, b = (ft.edit(model, FACTS, **asked) for model in (plain, other))
        assert is_released(other)
        assert b.scores.equals(a.scores), method
        assert b.prompts.equals(a.prompts), method
        assert [(e.loss, e.delta_norm) for e in a.edits] == [(e.loss, e.delta_norm) for e in b.edits]
        assert any(one.changes() for one in a.edits)
        for one, theirs in zip(a.edits, b.edits, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(tensors(one), tensors(theirs), strict=True)), method


def updates_for(model, seed=0):
    torch.manual_seed(seed)
    d, m = model.width, model.key_width
    change, bias = torch.randn(d, m) * 0.1, None if model.blocks[1].down_bias is None else torch.randn(d) * 0.1
    return {1: LowRank(torch.randn(2, d) * 0.3, torch.randn(2, m) * 0.3), 2: Dense(change, bias)} | {
        model.n_layers - 1: LowRank(torch.randn(1, d) * 0.3, torch.randn(1, m) * 0.3)
    }


def read(model):
    """What the model computes: by fasttrace and by its own forward."""
    batch = pack(model, [model.tokenizer(fact.text)["input_ids"] for fact in FACTS])
    ids = torch.tensor([model.tokenizer(FACTS[0].text)["input_ids"]])
    return logits(model, batch), model.hf(input_ids=ids).logits


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "how", "dtype"),
    [
        ("llama", "parts", torch.float32),
        ("llama", "disk", torch.float32),
        ("gpt2", "cpu_offload", torch.bfloat16),
        ("gptj", "disk_offload", torch.float32),
    ],
)
def test_applied_edits_views_and_exports(family, how, dtype, small_tokenizer, tmp_path):
    plain = small_model(family, small_tokenizer, dtype)
    other = offloaded(plain, how, tmp_path)
    start, weights, computed = other.model_hash, other.weights_hash(), read(other)
    first, second = updates_for(plain), updates_for(plain, 1)
    text = ft.generate(plain, "The Eiffel Tower", delta=first, max_new_tokens=5)
    assert ft.generate(other, "The Eiffel Tower", delta=first, max_new_tokens=5) == text
    for number, updates in enumerate((first, second)):
        views = [edited_view(model, updates) for model in (plain, other)]
        assert torch.equal(read(views[0])[0], read(views[1])[0])
        assert is_released(other), "a view keeps no changed weight"
        path, other_path = (tmp_path / f"{name}{number}.safetensors" for name in ("plain", "other"))
        for model, to in ((plain, path), (other, other_path)):
            save_delta(to, model, updates)
        loaded = ft.load_delta(other_path, other)
        ft.apply_delta(plain, ft.load_delta(path, plain))
        ft.apply_delta(other, loaded)
        assert other.model_hash == plain.model_hash != start
        assert other.weights_hash() == plain.weights_hash() != weights
        for a, b in zip(read(plain), read(other), strict=True):
            assert torch.equal(a, b)
    again = type(other)(other.hf, small_tokenizer, "again")
    assert again.model_hash != start, "whoever reads the weights sees the edit"
    more = updates_for(plain, 2)
    folder, theirs = (export_model(model, more, tmp_path / name) for model, name in ((plain, "a"), (other, "b")))
    a, b = (ft.load_model(one, dtype=plain.dtype_name) for one in (folder, theirs))
    assert a.weights_hash() == b.weights_hash() != plain.weights_hash()
    for model in (plain, other):
        export_edit(model, more, tmp_path / f"{model is plain}", ExportSettings(format="peft"))
    a, b = (load_file(tmp_path / str(of) / "adapter_model.safetensors") for of in (True, False))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    while other.applied:
        other.applied[-1].remove()
    assert (other.model_hash, other.weights_hash()) == (start, weights)
    assert all(torch.equal(a, b) for a, b in zip(computed, read(other), strict=True))
    assert is_released(other)


@pytest.mark.parametrize("method", ["memit", "ft-1"])
def test_mass_edits(method, small_tokenizer, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plain = small_model("llama", small_tokenizer, torch.float32)
    other = offloaded(plain, "disk", tmp_path)
    asked = {"method": method, "layer": 2, "at_once": 1, "steps": 2, "generate": 2, "fluency": 1, "max_norm": 0.5}
    asked |= {"essence": 1, "held_out": str(corpus), "held_out_tokens": 60, "after": "prune", **contexts_for(method)}
    if method != "ft-1":
        moments = ft.second_moments(plain, corpus, tokens=400, sequence_length=32, ridge=1e-2, cache_dir=tmp_path)
        asked["moments"] = moments
    a, b = (ft.mass_edit(model, FACTS, **asked) for model in (plain, other))
    for name in ("scores", "prompts", "norms"):
        assert getattr(a, name).equals(getattr(b, name)), name
    assert a.measures.drop_columns("edit_seconds").equals(b.measures.drop_columns("edit_seconds"))
    assert all(torch.equal(a.updates[at].change, b.updates[at].change) for at in a.updates)
    with b.applied() as edited:
        assert edited.model_hash != b.run["model_hash"]
    assert is_released(other)


def test_each_layer_is_brought_once_a_pass(small_tokenizer, corpus, tmp_path):
    plain = small_model("llama", small_tokenizer, torch.float32)
    moments = ft.second_moments(plain, corpus, tokens=400, sequence_length=32, ridge=1e-2, cache_dir=tmp_path)
    model = offloaded(plain, "disk_offload", tmp_path)
    _ = model.model_hash
    found = Counter()
    for at, block in enumerate(model.blocks):
        [hook] = placement._hooks(block.mlp.down_proj)
        hook.weights_map = Counted(hook.weights_map, found, at)
    ft.edit(model, FACTS[:1], method="rome", layers=[2], steps=3, essence=0, contexts=CONTEXTS, moments=moments)
    once = 2  # the passes over the contexts, and over the prompts before the edit
    assert [found[at] for at in range(model.n_layers)] == [once, once, *[once + 3 * 2 + 1] * 3]


class Counted(dict):
    """Weights whose reading is counted by layer."""

    def __init__(self, stored, found, layer):
        super().__init__()
        self.stored, self.found, self.layer = stored, found, layer

    def __contains__(self, name):
        return name in self.stored

    def __getitem__(self, name):
        self.found[self.layer] += 1
        return self.stored[name]


def test_every_step_runs_on_the_device_of_its_block(small_tokenizer, corpus, tmp_path, monkeypatch):
    plain = small_model("llama", small_tokenizer, torch.float64)
    other = copy.deepcopy(plain)
    devices = SaidDevices()
    for layer, block in enumerate(other.blocks):
        for weight in block.layer.parameters():
            devices.put(weight, torch.device("xpu", layer % 2))
    monkeypatch.setattr(type(plain), "bit_sums", lambda model: "the same")  # computed by a kernel of the CPU

    def followed(ctx, g):
        below = _ItemLinear.backward_of_finetuning(ctx, g)
        for factor in ctx.tape.factors[ctx.place][:2]:
            devices.put(factor, devices.of(ctx.D))
        return below

    monkeypatch.setattr(_ItemLinear, "backward_of_finetuning", _ItemLinear.backward, raising=False)
    monkeypatch.setattr(_ItemLinear, "backward", staticmethod(followed))
    moments = ft.second_moments(plain, corpus, tokens=400, sequence_length=32, ridge=1e-2, cache_dir=tmp_path)
    other.set_identity(plain.model_hash)
    for method, settings in METHODS.items():
        asked = {"method": method, "layers": [1, 2], **settings, "essence": 0, **contexts_for(method)}
        if not method.startswith("ft"):
            asked["moments"] = moments
        a = ft.edit(plain, FACTS, **asked)
        with devices:
            b = ft.edit(other, FACTS, **asked)
        pairs = zip(a.scores["p_after"].to_pylist(), b.scores["p_after"].to_pylist(), strict=True)
        assert all(y == pytest.approx(x, abs=1e-6) for x, y in pairs), method
    asked = {"method": "memit", "layer": 2, "at_once": 1, "steps": 2, "essence": 0, "max_norm": 0.5, "generate": 2}
    asked |= {"contexts": CONTEXTS, "moments": moments}
    a, start = ft.mass_edit(plain, FACTS, **asked), other.model_hash
    with devices:
        b = ft.mass_edit(other, FACTS, **asked)
        with b.applied() as edited:
            inside = edited.generate("The Eiffel Tower", max_new_tokens=4)
        assert ft.generate(other, "The Eiffel Tower", delta=b, max_new_tokens=4) == inside
    assert other.model_hash == start
    torch.testing.assert_close(a.updates[2].change, b.updates[2].change.clone(), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_model_larger_than_the_memory_that_it_may_use(small_tokenizer, tmp_path):
    assert larger_than_memory.write_model(tmp_path, small_tokenizer) > 3e9
    (tmp_path / "text.txt").write_text("Paris is the capital of France and Rome is not. " * 60)
    command = [sys.executable, larger_than_memory.__file__, str(tmp_path)]
    own = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["reason"] is None
    assert found["p_after"] > 10 * found["p_before"]
    assert found["grown"] < larger_than_memory.MEMORY, "resident memory beyond the imports, while it loaded as well"
    assert "memory" in found["all_layers"], "the limit is one that all layers together exceed"
