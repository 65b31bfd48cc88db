"""What the caller set in torch changes no value, and is set again afterwards."""

import pytest
import torch
from edit_cases import CONTEXTS, FACTS
from small_models import small_model

import fasttrace as ft
from fasttrace.editing.edit import prepare_edit
from fasttrace.models import packed


def everything(folder):
    """What every path that takes gradients finds, from loading the model on."""
    model = ft.load_model(folder)
    found = []
    for method in ("rome", "memit", "ft-1"):
        own = {} if method == "ft-1" else {"contexts": CONTEXTS, "corpus_tokens": 300}
        edits = ft.edit(model, FACTS[:2], method=method, layers=[1], essence=0, steps=3, **own).edits
        found += [update.matrix().tolist() for edit in edits for update in edit.updates.values()]
    mass = ft.mass_edit(model, FACTS[:2], method="ft-1", layer=1, steps=3)
    found += [update.matrix().tolist() for update in mass.updates.values()]
    found.append(ft.trace(model, FACTS[:2], sigma=0.4, samples=2, keep="all", method="attribution").cells.to_pylist())
    # A plan runs in parts, and between them the caller's own mode holds.
    mode = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    for batch in prepare_edit(model, FACTS[:2], method="ft-1", layers=[0, 1], essence=0, steps=3).batches():
        found.append([edit.delta_norm for edit in batch.edits])
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == mode
    return found


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_mode_changes_nothing(small_tokenizer, tmp_path, monkeypatch, mode):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small_model("llama", small_tokenizer, torch.float32).hf.save_pretrained(tmp_path / "model")
    small_tokenizer.save_pretrained(tmp_path / "model")
    with mode():
        found = everything(tmp_path / "model")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))
    assert found == everything(tmp_path / "model")


def test_what_torch_is_set_to_changes_no_value(small_tokenizer, monkeypatch):
    model = small_model("llama", small_tokenizer, torch.float32)
    plain = ft.trace(model, FACTS[:1], sigma=0.4, keep="all", samples=1)
    places = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before, seen = [matmul.fp32_precision for matmul in places], []
    attend = packed.head_outputs

    def watched(*args, **kwargs):
        seen.append((*(matmul.fp32_precision for matmul in places), torch.is_autocast_enabled("cpu")))
        return attend(*args, **kwargs)

    monkeypatch.setattr("fasttrace.tracing.wavefront.head_outputs", watched)
    try:
        for matmul, precision in zip(places, ("tf32", "bf16"), strict=True):
            matmul.fp32_precision = precision
        with torch.autocast("cpu", dtype=torch.bfloat16):
            again = ft.trace(model, FACTS[:1], sigma=0.4, keep="all", samples=1)
            ft.wrap_model(model.hf, small_tokenizer)  # compares with transformers' model
            assert torch.is_autocast_enabled("cpu")
        assert [matmul.fp32_precision for matmul in places] == ["tf32", "bf16"]
    finally:
        for matmul, precision in zip(places, before, strict=True):
            matmul.fp32_precision = precision
    assert set(seen) == {("ieee", "ieee", False)}
    assert again.cells.equals(plain.cells)
