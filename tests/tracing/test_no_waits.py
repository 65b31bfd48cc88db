"""The wavefront as a GPU would run it, on meta tensors.

Between layers nothing is read back, as reading a meta tensor is an error. The host starts as many operations for twenty
facts as for two. That an upload does not wait, because its memory is pinned, is not tested.
"""

import importlib
from collections import Counter

import pytest
import torch
from small_models import small_config
from torch.utils._python_dispatch import TorchDispatchMode

import fasttrace as ft
from fasttrace.facts import encode_fact
from fasttrace.tracing import wavefront
from fasttrace.tracing.plan import METHODS, MODULES, Intervention, make_item, split_waves, traced_heads

FAMILIES = ("gptj", "gpt2", "llama", "gemma2")
OPS = ("window_restore", "prefix_attention", "rms_norm", "rotary", "silu_mul", "gelu_tanh")


class Started(TorchDispatchMode):
    """Records the torch operations that the host starts."""

    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.ops.append(str(op))
        return op(*args, **(kwargs or {}))


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Let ops choose as on a GPU, and return a list that records Triton's launches, which are not run."""
    pytest.importorskip("triton")
    from triton.runtime.jit import JITFunction

    def choose(op, impl, available, *tensors):
        return "triton" if "triton" in available else "reference"

    for name in OPS:
        monkeypatch.setattr(importlib.import_module(f"fasttrace.ops.{name}"), "choose", choose)
    launches = []
    monkeypatch.setattr(JITFunction, "__getitem__", lambda kernel, grid: lambda *args, **how: launches.append(kernel))
    return launches


def started(family, tokenizer, module, method, n_facts, launches, monkeypatch):
    """Return the operations and kernels that `start_wave` starts for `n_facts` facts of equal length in one wave."""
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_config(small_config(family, len(tokenizer)), dtype=torch.bfloat16)
    model = ft.wrap_model(hf, tokenizer, family, check=False)  # no kernel runs
    model.hf.to("meta")
    subjects = [f"Tower {chr(65 + n)}" for n in range(n_facts)]
    facts = [ft.Fact(prompt="The {} is in the city of", subject=subject, target_true="Paris") for subject in subjects]
    encoded = [encode_fact(tokenizer, fact) for fact in facts]
    assert len({(len(e.ids), e.subject_begin, e.subject_end) for e in encoded}) == 1
    intervention = Intervention(module, method)
    how = {"samples": 3, "heads": traced_heads(model, [0, 2] if module == "head" else None)}
    items = [make_item(e, [3, 1], model.n_layers, "all", method, e.target_true_ids[:1], **how) for e in encoded]
    [wave] = split_waves(items, 10**9)
    rows = sum(item.base_rows() for item in items)
    with torch.device("meta"):
        entered = torch.empty(rows, model.width, dtype=torch.bfloat16), torch.empty(rows, dtype=torch.int64)
    monkeypatch.setattr(wavefront, "embed_base", lambda *_: entered)
    monkeypatch.setattr(wavefront, "_scores", lambda model, layout, wave, h, compare: lambda: h)
    launches.clear()
    with Started() as host:
        h = wavefront.start_wave(model, items, wave, intervention, 0.1, "philox", 0)()
    assert h.device.type == "meta"
    assert launches
    return host.ops + [kernel.fn.__module__ for kernel in launches]


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_read_back_between_layers(family, module, small_tokenizer, as_on_a_gpu, monkeypatch):
    for method in METHODS:
        few, many = (started(family, small_tokenizer, module, method, n, as_on_a_gpu, monkeypatch) for n in (2, 20))
        assert Counter(few) == Counter(many)


@pytest.mark.parametrize("look", [lambda t: t.cpu(), lambda t: t[t >= 0], lambda t: t.max().item()])
def test_reading_back_is_detected(look, small_tokenizer, as_on_a_gpu, monkeypatch):
    through = wavefront.window_restore

    def looked_at(h, out, base, source):
        look(base)
        return through(h, out, base, source)

    monkeypatch.setattr(wavefront, "window_restore", looked_at)
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        started("gptj", small_tokenizer, "mlp", "denoise", 2, as_on_a_gpu, monkeypatch)
