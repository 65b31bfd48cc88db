"""Models with weights offloaded to disk or CPU memory compute bit for bit what the whole model computes."""

import copy

import numpy as np
import pytest
import torch
from small_models import small_model

import fasttrace as ft
from fasttrace.editing.export import export_model
from fasttrace.errors import ModelError
from fasttrace.facts import encode_fact
from fasttrace.models import packed, placement, wrap_model
from fasttrace.models.generate import greedy_tokens
from fasttrace.tracing.attribution import attribute
from fasttrace.tracing.plan import make_item

FACT = ft.Fact(
    prompt="The {} is located in the city of", subject="Eiffel Tower", target_true="Paris", target_false="Rome"
)
SEQUENCES = [[5, 9, 2, 7, 11], [17], [3, 3, 250]]


def is_released(model):
    """Whether every weight that was loaded for a pass has been released."""
    for part in model.hf.modules():
        for hook in placement._hooks(part):
            if any(w.device.type != "meta" for w in part.parameters(recurse=hook.place_submodules)):
                return False
    return placement.is_offloaded(model.hf)


def fail_at(model, wanted, look):
    """Call `look` on each block and raise ZeroDivisionError at layer `wanted`."""
    for layer, block in model.layers():
        look(block)
        _ = 1 / (wanted - layer)


def check_same(plain, offloaded, facts, sigma, samples=2, tokens="subject"):
    """Assert equal hash, logits, scores, greedy text, grid and estimates, and that all weights are released."""
    assert offloaded.model_hash == plain.model_hash
    assert is_released(offloaded)
    a, b = (packed.logits(m, packed.pack(m, SEQUENCES)) for m in (plain, offloaded))
    assert torch.equal(a, b)
    assert is_released(offloaded)
    a, b = (packed.sequence_logprob(m, SEQUENCES, [[4, 8], [6], [1, 2, 3]]) for m in (plain, offloaded))
    assert torch.equal(a, b)
    assert greedy_tokens(plain, SEQUENCES, 5) == greedy_tokens(offloaded, SEQUENCES, 5)
    a, b = (ft.trace(m, facts, sigma=sigma, keep="all", samples=samples, tokens=tokens) for m in (plain, offloaded))
    assert a.cells.equals(b.cells)
    assert a.run["run_id"] == b.run["run_id"]
    items = [
        make_item(encode_fact(plain.tokenizer, fact), [3], plain.n_layers, tokens, samples=samples) for fact in facts
    ]
    a, b = (attribute(m, items, sigma, "philox", 0, "attn") for m in (plain, offloaded))
    assert all(np.array_equal(p, b.estimates[0][cell], equal_nan=True) for cell, p in a.estimates[0].items())
    assert is_released(offloaded)
    assert offloaded.model_hash == type(plain)(offloaded.hf, offloaded.tokenizer, "again").model_hash


@pytest.fixture(params=["llama", "llama-bias", "qwen2", "gpt2"])
def saved(request, small_tokenizer, tmp_path):
    """A small random model as a folder of safetensors, and how accelerate names its parts."""
    model = small_model(request.param, small_tokenizer, torch.float32)
    model.hf.save_pretrained(tmp_path / "model")
    small_tokenizer.save_pretrained(tmp_path / "model")
    base = "transformer" if request.param == "gpt2" else "model"
    layers = "h" if request.param == "gpt2" else "layers"
    return tmp_path / "model", [name for name, _ in getattr(model.hf, base).named_children()], base, layers


def test_some_layers_on_disk(saved):
    folder, children, base, layers = saved
    plain = ft.load_model(folder)
    places = {f"{base}.{name}": "cpu" for name in children if name != layers} | {"lm_head": "cpu"}
    places |= {f"{base}.{layers}.{i}": "disk" if i in (0, 2, 3) else "cpu" for i in range(plain.n_layers)}
    offloaded = ft.load_model(folder, device=places)
    assert offloaded.blocks[0].down.device.type == "meta"
    assert offloaded.blocks[1].down.device.type == "cpu"
    check_same(plain, offloaded, [FACT], 0.4)


def test_all_on_disk(saved):
    folder, *_ = saved
    check_same(ft.load_model(folder), ft.load_model(folder, device={"": "disk"}), [FACT], 0.4)


@pytest.mark.parametrize("family", ["gemma3", "neox", "opt-bare", "xglm", "phi4-multimodal"])
def test_positions_and_norms_without_weights_need_none_of_those_on_disk(family, small_tokenizer, tmp_path):
    plain = small_model(family, small_tokenizer, torch.float32)
    plain.hf.save_pretrained(tmp_path)
    small_tokenizer.save_pretrained(tmp_path)
    check_same(plain, ft.load_model(tmp_path, device={"": "disk"}), [FACT], 0.4)


def test_auto_fills_memory_and_then_the_disk(saved, tmp_path):
    folder, *_ = saved
    plain = ft.load_model(folder)
    size = sum(w.numel() * w.element_size() for w in plain.hf.parameters())
    offloaded = ft.load_model(folder, device="auto", max_memory={"cpu": int(0.7 * size)})
    assert placement.is_offloaded(offloaded.hf)
    check_same(plain, offloaded, [FACT], 0.4)
    whole = ft.load_model(folder, device="auto", max_memory={"cpu": "10GB"})
    assert not placement.is_offloaded(whole.hf)
    assert whole.model_hash == plain.model_hash


@pytest.mark.parametrize("kind", ["cpu", "disk"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_models_that_accelerate_offloaded(kind, family, small_tokenizer, tmp_path):
    from accelerate import cpu_offload, disk_offload

    plain = small_model(family, small_tokenizer, torch.float32)
    hf = copy.deepcopy(plain.hf)
    hf = cpu_offload(hf, "cpu") if kind == "cpu" else disk_offload(hf, tmp_path, "cpu")
    check_same(plain, wrap_model(hf, small_tokenizer, family), [FACT], 0.4)


def test_real_model_on_disk(smollm2, tmp_path):
    folder = export_model(smollm2, {}, tmp_path / "model")
    plain = ft.load_model(folder)
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{i}": "disk" if i % 3 == 0 else "cpu" for i in range(30)}
    offloaded = ft.load_model(folder, device=places)
    peru = ft.Fact(prompt="{} is located in the country of", subject="Machu Picchu", target_true="Peru")
    check_same(plain, offloaded, [peru], 0.4, tokens="last-subject")


def test_second_moments_of_an_offloaded_model(small_tokenizer, tmp_path):
    from accelerate import disk_offload

    plain = small_model("gpt2", small_tokenizer, torch.float32)
    offloaded = wrap_model(disk_offload(copy.deepcopy(plain.hf), tmp_path / "w", "cpu"), small_tokenizer, "gpt2")
    text = tmp_path / "text.txt"
    text.write_text("Paris is the capital of France and Rome is not. " * 40)
    a, b = (
        ft.second_moments(m, text, tokens=200, sequence_length=32, layers=[0, 2], cache_dir=tmp_path / str(i))
        for i, m in enumerate((plain, offloaded))
    )
    assert torch.equal(a.matrix(2), b.matrix(2))
    assert is_released(offloaded)


def test_weights_are_released_when_a_pass_fails(small_tokenizer, tmp_path):
    from accelerate import disk_offload

    model = small_model("llama", small_tokenizer, torch.float32)
    model = wrap_model(disk_offload(model.hf, tmp_path, "cpu"), small_tokenizer, "llama")
    reached = []
    with pytest.raises(ZeroDivisionError):
        fail_at(model, 2, lambda block: reached.append(block.down.device.type))
    assert reached == ["cpu"] * 3
    assert is_released(model)


def test_settings_that_do_not_go_together(small_tokenizer, tmp_path):
    with pytest.raises(ModelError, match="max_memory and offload_folder: expected device='auto', got"):
        ft.load_model(tmp_path, max_memory={"cpu": "1GB"})
    with pytest.raises(ModelError, match="dtype 'tf32': expected a CUDA device, got 'cpu'"):
        ft.load_model(tmp_path, dtype="tf32")
    small_model("llama", small_tokenizer, torch.float32).hf.save_pretrained(tmp_path)
    small_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="device_map provided does not give any device for"):
        ft.load_model(tmp_path, device={"model.norm": "disk"})
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="cannot be used"):
            ft.load_model(tmp_path, device={"": "cuda:0"})
        with pytest.raises(ModelError, match="dtype 'tf32': expected a CUDA device, got 'auto'"):
            ft.load_model(tmp_path, device="auto", dtype="tf32")


def test_tf32_names_the_run_and_leaves_the_setting_as_it_was(small_tokenizer, monkeypatch):
    model = small_model("llama", small_tokenizer, torch.float32)
    plain = ft.trace(model, [FACT], sigma=0.4, keep="all", samples=1).run
    matmul = torch.backends.cuda.matmul
    before, seen = matmul.fp32_precision, []
    attend = packed.head_outputs

    def watched(*args, **kwargs):
        seen.append(matmul.fp32_precision)
        return attend(*args, **kwargs)

    monkeypatch.setattr("fasttrace.tracing.wavefront.head_outputs", watched)
    model.tf32 = True
    run = ft.trace(model, [FACT], sigma=0.4, keep="all", samples=1).run
    assert set(seen) == {"tf32"}
    assert matmul.fp32_precision == before
    assert run["dtype"] == "tf32"
    assert run["run_id"] != plain["run_id"]
    with pytest.raises(ZeroDivisionError):
        fail_at(model, 0, lambda block: None)
    assert matmul.fp32_precision == before
