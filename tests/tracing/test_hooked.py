"""The engine "hooked": the wavefront's values where it drives a model, and those of one forward per cell elsewhere."""

import json

import numpy as np
import pytest
import torch
from grids import EIFFEL, KEY, YORK, check_grid, hooked, spots_of
from small_models import small_model

import fasttrace as ft
from fasttrace.errors import ModelError, UserError
from fasttrace.facts import encode_fact
from fasttrace.models.hooked import HookedDecoder
from fasttrace.tracing import prepare_trace
from fasttrace.tracing.plan import METHODS, MODULES

COMMON = {"keep": "all", "samples": 3, "sigma": 0.5, "windows": [4, 1], "keep_samples": True}
NO_MLP, MIXED = ("attn", "block"), ("mlp", "attn", "block")


def configs(vocab_size):
    """Type without blocks that fasttrace drives → its config, and the modules that each of its layers has."""
    import transformers as tf

    common = {"vocab_size": vocab_size, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    own = {**common, "hidden_size": 48, "num_hidden_layers": 4}
    heads = {**own, "intermediate_size": 80, "num_attention_heads": 4, "num_key_value_heads": 2}
    mamba = {"mamba_n_heads": 6, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
    linear = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8}
    experts = {"num_experts": 4, "num_experts_per_tok": 2}
    every_other = ["linear_attention", "full_attention"] * 2
    return {
        "mamba": (tf.MambaConfig(**own, state_size=8), NO_MLP),
        "mamba2": (tf.Mamba2Config(**own, num_heads=6, head_dim=16, state_size=8, n_groups=1, chunk_size=8), NO_MLP),
        "rwkv": (tf.RwkvConfig(**own, attention_hidden_size=48, context_length=160, rescale_every=0), MIXED),
        "bamba": (tf.BambaConfig(**heads, **mamba, attn_layer_indices=[1, 3]), MIXED),
        "qwen3_5_text": (
            tf.Qwen3_5TextConfig(**heads, **linear, head_dim=12, linear_value_head_dim=8, layer_types=every_other),
            MIXED,
        ),
        "recurrent_gemma": (
            tf.RecurrentGemmaConfig(**heads, head_dim=12, lru_width=48, attention_window_size=8), MIXED
        ),
        "lfm2": (tf.Lfm2Config(**heads, layer_types=["conv", "full_attention"] * 2), MIXED),
        "cohere2_moe": (tf.Cohere2MoeConfig(**heads, **experts, sliding_window=4), (*MIXED, "head")),
    }  # fmt: skip


TYPES = tuple(configs(16))


def wrapped(name, tokenizer):
    """A random float64 model of a type, and the modules that it has."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config, modules = configs(len(tokenizer))[name]
    hf = AutoModelForCausalLM.from_config(config).double()
    with torch.no_grad():
        for weight in hf.parameters():
            weight.add_(torch.randn_like(weight) * (0.25 if weight.ndim > 1 else 0.05))
    return ft.wrap_model(hf, tokenizer, name), modules


MORE = [pytest.param(family, marks=pytest.mark.slow) for family in ("neox", "falcon", "opt", "bloom")]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", *MORE])
def test_values_are_the_wavefronts(family, small_tokenizer):
    """Every module, method and corruption, also where memory splits the passes of a cell over forwards."""
    model = small_model(family, small_tokenizer, torch.float64)
    for number, module in enumerate(MODULES):
        for method in METHODS:
            noised = method == "zero" or (number + METHODS.index(method)) % 2 == 0
            asked = {
                "module": module, "method": method, "corruption": "noise" if noised else "counterfactual",
                "metric": "logit-difference" if method == "zero" else "kl", **COMMON,
            }  # fmt: skip
            mine = ft.trace(model, [EIFFEL, YORK], engine="hooked", memory="4MB", **asked)
            fast = ft.trace(model, [EIFFEL, YORK], **asked)
            for name in ("facts", "cells", "samples"):
                check_equal(getattr(mine, name), getattr(fast, name))


def check_equal(mine, fast):
    """Two tables of the two engines, to 1e-11 of the largest value of a column."""
    assert set(mine["engine"].to_pylist()) == {"hooked"}
    assert set(fast["engine"].to_pylist()) == {"wavefront"}
    order = [name for name in (*KEY, "sample") if name in mine.column_names]
    mine, fast = (table.drop(["engine"]).to_pandas().sort_values(order) for table in (mine, fast))
    for name in mine.columns:
        if mine[name].dtype != float:
            assert mine[name].astype(str).tolist() == fast[name].astype(str).tolist(), name
            continue
        one, other = mine[name].to_numpy(), fast[name].to_numpy()
        assert np.array_equal(np.isnan(one), np.isnan(other)), name
        if not np.isnan(one).all():
            assert np.nanmax(np.abs(one - other)) <= 1e-11 * np.nanmax(np.abs(other)), name


@pytest.mark.parametrize("name", TYPES)
def test_any_decoder_is_traced_as_by_one_forward_per_cell(name, small_tokenizer):
    model, modules = wrapped(name, small_tokenizer)
    for module in MODULES:
        if module not in modules:
            with pytest.raises(ModelError, match=rf"has \({', '.join(modules)}\), got {module}, but found no "):
                ft.trace(model, [EIFFEL], method="hooked", module=module)
            continue
        heads = [[head] for head in range(4)] if module == "head" else [()]
        for method, corruption in (("denoise", "noise"), ("noise", "counterfactual")):
            asked = {"module": module, "method": method, "corruption": corruption, "metric": "kl", "noise": "released"}
            result = ft.trace(model, [EIFFEL], engine="hooked", **{**COMMON, "windows": [3]}, **asked)
            spots = spots_of(encode_fact(small_tokenizer, EIFFEL), "all")
            how = {"module": module, "method": method, "corruption": corruption, "samples": 3, "sigma": 0.5}
            expected = hooked(model, EIFFEL, 3, spots, heads=heads, **how)
            check_grid(
                model, EIFFEL, result, expected, 3,
                metric="kl", method=method, heads=heads, first=0, reached=True, tolerance=1e-11,
            )  # fmt: skip


def test_a_fact_is_known_as_transformers_continues_it(small_tokenizer):
    model, _ = wrapped("bamba", small_tokenizer)
    facts = [ft.Fact(prompt="{} is", subject="Paris", target_true="x"), EIFFEL]
    rows = ft.check_known(model, facts).verdicts.to_pylist()
    for fact, row in zip(facts, rows, strict=True):
        ids = torch.tensor([encode_fact(small_tokenizer, fact).ids])
        target = encode_fact(small_tokenizer, fact).target_true_ids
        more = model.hf.generate(ids, max_new_tokens=36, do_sample=False, use_cache=False)[0, ids.shape[1] :]
        assert row["continuation"] == small_tokenizer.decode(more, skip_special_tokens=True)
        whole = torch.cat((ids, torch.tensor([target])), 1)
        logp = model.hf(whole, use_cache=False).logits[0, ids.shape[1] - 1 : -1].log_softmax(1)
        p = logp.gather(1, torch.tensor(target)[:, None]).sum().exp()
        assert row["p_true"] == pytest.approx(float(p), rel=1e-12)
    kept = ft.trace(model, facts, method="hooked", windows=[1], samples=2).facts.to_pylist()
    assert [row["kept"] for row in kept] == [row["known"] for row in rows]


def test_what_drives_blocks_refuses_such_a_model_in_one_sentence(small_tokenizer, tmp_path, command):
    model, _ = wrapped("mamba", small_tokenizer)
    assert isinstance(model, HookedDecoder)
    way_out = r'method="hooked", module="attn" \(--method hooked --module attn\)'
    sentence = rf"^[^\n]*model type 'mamba' has no adapter[^\n]*{way_out}"
    for refused in (
        lambda: ft.trace(model, [EIFFEL]),
        lambda: ft.edit(model, [EIFFEL], layers=[1]),
        lambda: ft.mass_edit(model, [EIFFEL]),
        lambda: ft.second_moments(model),
        lambda: ft.generate(model, "a"),
        lambda: model.generate("a"),
    ):
        with pytest.raises(ModelError, match=sentence):
            refused()
    model.hf.save_pretrained(tmp_path / "model")
    small_tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "facts.csv").write_text("prompt,subject,target_true\n{} is in,Paris,France\n")
    asked = ["--model", str(tmp_path / "model"), "--facts", str(tmp_path / "facts.csv"), "--windows", "1"]
    store = ["--store", str(tmp_path / "s.duckdb")]
    for verb in ("trace", "edit"):
        said = command(verb, *asked[:4], *store, code=2).stderr
        assert "--method hooked" in said
        assert "Traceback" not in said
    hooked_mixer = ["trace", *asked, "--method", "hooked", "--module", "attn", "--keep", "all", "--samples", "2"]
    assert "whole forward's current rate" in command(*hooked_mixer, "--dry-run").stdout
    command(*hooked_mixer, *store)
    for relation in ("traces", "trace_cells", "trace_effects", "trace_settings", "trace_runs"):
        found = command("sql", f"SELECT DISTINCT engine FROM {relation}", *store, "--json").stdout
        assert json.loads(found) == [{"engine": "hooked"}], relation


def test_the_short_name_is_denoise_with_the_engine(small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float64)
    short = prepare_trace(model, [EIFFEL], method="hooked", keep="all")
    plain = prepare_trace(model, [EIFFEL], keep="all")
    assert short.run == {**prepare_trace(model, [EIFFEL], engine="hooked", keep="all").run, **made(short)}
    assert short.run["run_id"] != plain.run["run_id"]
    assert "engine" not in plain.run["settings"]
    with pytest.raises(UserError, match="method: expected denoise, noise or zero with engine hooked, got attribution"):
        prepare_trace(model, [EIFFEL], method="attribution", engine="hooked")


def made(plan):
    return {"created_at": plan.run["created_at"]}


def test_the_cost_counts_every_pass(small_tokenizer):
    model = small_model("gpt2", small_tokenizer, torch.float64)
    plan = prepare_trace(model, [YORK], method="hooked", keep="all", samples=4, windows=[1], tokens="subject")
    cost = plan.cost()
    [item] = plan.items(plan.encoded)
    matrices = sum(weight.numel() for layer in model.layer_modules for weight in layer.parameters() if weight.ndim > 1)
    # The last layer's output at a subject token is not seen. The unembedding is of the last token only.
    passes = 1 + 4 + 4 * (len(item.cells) - 1)
    assert cost.flops == passes * (2 * item.rows * matrices + 2 * model.width * model.vocab_size)
    assert sum(part.run["flops"] for part in plan.batches()) == cost.flops
    with pytest.raises(UserError, match=r"^memory: expected a budget of at least .* for a pass of fact"):
        plan.cost(memory="1KB")
