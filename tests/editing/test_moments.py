"""Second moments against float64 products of hooked keys, their cache, and resuming after a kill."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_models import small_model

from fasttrace.cache import load_tensors
from fasttrace.editing import collect as collect_module
from fasttrace.editing import corpus as corpus_module
from fasttrace.editing import lanes as lanes_module
from fasttrace.editing.collect import second_moments
from fasttrace.editing.moments import layer_file
from fasttrace.errors import UserError
from fasttrace.models.generate import sample_tokens, start_ids

TEXT = "The Eiffel Tower is located in the city of Paris. Über den Flüssen stehen 12 Brücken.\n" * 60
HERE = Path(__file__).parent


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def llama(small_tokenizer):
    return small_model("llama", small_tokenizer, torch.float32)


def hooked_moments(model, sequences):
    """Σ k kᵀ / N per layer, in float64, from the down-projections' inputs of transformers' own forward."""
    sums = [torch.zeros(model.key_width, model.key_width, dtype=torch.float64) for _ in model.blocks]

    def hook(layer):
        def add(_module, inputs):
            keys = inputs[0].reshape(-1, model.key_width).double()
            sums[layer] += keys.T @ keys

        return add

    if hasattr(model.hf, "transformer"):
        downs = [block.mlp.c_proj for block in model.hf.transformer.h]
    else:
        downs = [block.mlp.down_proj for block in model.hf.model.layers]
    handles = [down.register_forward_pre_hook(hook(i)) for i, down in enumerate(downs)]
    with torch.no_grad():
        for sequence in sequences:
            model.hf(torch.tensor([sequence]))
    for handle in handles:
        handle.remove()
    return [C / sum(map(len, sequences)) for C in sums]


# Sums of two float32 forwards of one model differ by less. A token too many or too few changes them by 1e-3 or more.
FORWARD = 1e-5


def cut(ids, length, tokens):
    return [ids[i : min(i + length, tokens)] for i in range(0, tokens, length)]


def relative(found, wanted):
    return float((found.double() - wanted).norm() / wanted.norm())


def test_sums_are_the_float64_sums_of_their_keys(llama, text_file, tmp_path, monkeypatch):
    sums = {}
    inner = lanes_module.forward

    def forward(model, batch, *, on_key):
        def both(layer, keys):
            sums[layer] = sums.get(layer, 0) + keys.of().double().T @ keys.of().double()
            on_key(layer, keys)

        return inner(model, batch, on_key=both)

    monkeypatch.setattr(lanes_module, "forward", forward)
    found = second_moments(llama, text_file, tokens=2500, sequence_length=48, batch_rows=48, cache_dir=tmp_path)
    assert sorted(sums) == found.layers
    for layer, wanted in sums.items():
        assert relative(found.matrix(layer), wanted / 2500) < 1e-6


# In float64 both forwards give the same keys, so the bound is that of the sums.
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-6), (torch.float32, FORWARD)])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_equal_to_hooked_float64_sums(family, dtype, limit, small_tokenizer, text_file, tmp_path):
    model = small_model(family, small_tokenizer, dtype)
    ids = small_tokenizer(TEXT).input_ids
    found = second_moments(model, text_file, tokens=1001, sequence_length=48, batch_rows=200, cache_dir=tmp_path)
    assert (found.n_tokens, found.requested_tokens, found.layers) == (1001, 1001, [0, 1, 2, 3, 4])
    for layer, wanted in enumerate(hooked_moments(model, cut(ids, 48, 1001))):
        C = found.matrix(layer)
        assert C.dtype == torch.float32
        assert torch.equal(C, C.T)
        assert relative(C, wanted) < limit


def test_real_model_on_a_little_text(smollm2, text_file, tmp_path):
    found = second_moments(smollm2, text_file, tokens=300, sequence_length=64, layers=[0, 17, 29], cache_dir=tmp_path)
    ids = smollm2.tokenizer(TEXT).input_ids
    wanted = hooked_moments(smollm2, cut(ids, 64, 300))
    for layer in (0, 17, 29):
        # transformers' forward rounds its keys differently. The sums themselves are tested to 1e-6 above.
        assert relative(found.matrix(layer), wanted[layer]) < 2e-5
    with pytest.raises(UserError, match="singular with 300 tokens"):
        found.inverse_key(0, torch.ones(1, smollm2.key_width))


def test_accumulates_in_float64_where_float32_would_lose_digits(llama, text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(collect_module, "FLOAT32_BATCHES", 3)
    taken = []
    inner = lanes_module.second_moment_
    monkeypatch.setattr(lanes_module, "second_moment_", lambda C, K: (taken.append(C.dtype), inner(C, K)))
    second_moments(llama, text_file, tokens=200, sequence_length=48, batch_rows=48, cache_dir=tmp_path)
    assert set(taken) == {torch.float64}


def test_folder_is_read_in_order_and_cut_per_file(llama, small_tokenizer, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "b.txt").write_text("Rome Berlin " * 30)
    (folder / "a.txt").write_text("Paris is the capital of France " * 20)
    (folder / "c.md").write_text("not read")
    a, b = (small_tokenizer((folder / name).read_text()).input_ids for name in ("a.txt", "b.txt"))
    sequences = cut(a, 32, len(a)) + cut(b, 32, len(b))
    found = second_moments(llama, folder, tokens=10**6, sequence_length=32, cache_dir=tmp_path / "cache")
    assert found.n_tokens == len(a) + len(b)
    assert "of 1000000 asked for" in found.corpus
    assert relative(found.matrix(4), hooked_moments(llama, sequences)[4]) < FORWARD


def test_second_call_does_no_forward_and_more_layers_cost_only_themselves(llama, text_file, tmp_path, monkeypatch):
    options = {"tokens": 500, "sequence_length": 48, "cache_dir": tmp_path}
    first = second_moments(llama, text_file, layers=[1], **options)
    written = layer_file(first.path, 1).stat().st_mtime_ns
    asked = []
    inner = lanes_module.forward
    monkeypatch.setattr(lanes_module, "forward", lambda m, *a, **k: (asked.append(len(m.blocks)), inner(m, *a, **k)))
    more = second_moments(llama, text_file, layers=[3, 1], **options)
    assert more.layers == [1, 3]
    assert more.path == first.path
    assert layer_file(first.path, 1).stat().st_mtime_ns == written
    assert asked == [4]  # one batch, and no block above layer 3
    again = second_moments(llama, text_file, layers=[1, 3], **options)
    assert asked == [4]
    assert again.run["run_id"] == more.run["run_id"] != first.run["run_id"]
    everything = second_moments(llama, text_file, sequence_length=48, tokens=500, cache_dir=tmp_path / "other")
    assert torch.equal(everything.matrix(3), more.matrix(3))


def test_little_memory_means_more_passes_and_the_same_values(llama, text_file, tmp_path, monkeypatch):
    options = {"tokens": 500, "sequence_length": 48, "batch_rows": 96}
    whole = second_moments(llama, text_file, cache_dir=tmp_path / "a", **options)
    depths, reports = [], []
    inner = lanes_module.forward
    monkeypatch.setattr(lanes_module, "forward", lambda m, *a, **k: (depths.append(len(m.blocks)), inner(m, *a, **k)))
    parts = second_moments(
        llama, text_file, cache_dir=tmp_path / "b", memory=2 * 2 * 80 * 80 * 4,
        progress=lambda *r: reports.append(r), **options,
    )  # fmt: skip
    assert sorted(set(depths)) == [2, 4, 5]
    assert reports[-1] == ("moments", 1500, 1500)
    for layer in whole.layers:
        assert torch.equal(whole.matrix(layer), parts.matrix(layer))


def test_content_names_the_cache(llama, small_tokenizer, text_file, tmp_path):
    options = {"tokens": 200, "sequence_length": 48, "layers": [0], "cache_dir": tmp_path / "cache"}
    base = second_moments(llama, text_file, **options)
    moved = tmp_path / "moved.txt"
    moved.write_bytes(text_file.read_bytes())
    assert second_moments(llama, moved, **options).path == base.path
    moved.write_text(TEXT.replace("Paris", "Rome"), encoding="utf-8")
    other = small_model("llama", small_tokenizer, torch.float32)
    with torch.no_grad():
        other.blocks[0].down[0, 0] += 1
    paths = [
        base.path,
        second_moments(llama, moved, **options).path,
        second_moments(llama, text_file, **{**options, "tokens": 201}).path,
        second_moments(llama, text_file, **{**options, "sequence_length": 47}).path,
        second_moments(other, text_file, **options).path,
        second_moments(small_model("llama", small_tokenizer, torch.bfloat16), text_file, **options).path,
        second_moments(llama, None, **options).path,
        second_moments(llama, None, seed=1, **options).path,
    ]
    assert len(set(paths)) == len(paths)


def test_damaged_and_cut_files_are_found(llama, text_file, tmp_path):
    options = {"tokens": 300, "sequence_length": 48, "layers": [0, 1], "cache_dir": tmp_path}
    found = second_moments(llama, text_file, **options)
    good = found.matrix(0)
    file = layer_file(found.path, 0)
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 1
    file.write_bytes(raw)
    with pytest.raises(UserError, match=r"layer-00000.*damaged"):
        second_moments(llama, text_file, **options).matrix(0)
    file.write_bytes(bytes(raw[:-100]))
    assert torch.equal(second_moments(llama, text_file, **options).matrix(0), good)


def test_inverse_key_solves_in_float64(llama, text_file, tmp_path):
    options = {"tokens": 3000, "sequence_length": 48, "cache_dir": tmp_path}
    keys = torch.randn(3, llama.key_width, generator=torch.Generator().manual_seed(0))
    ridged = second_moments(llama, text_file, ridge=0.5, **options)
    C = ridged.matrix(2).double()
    wanted = torch.linalg.solve(C + 0.5 * C.diagonal().mean() * torch.eye(len(C), dtype=C.dtype), keys.double().T).T
    torch.testing.assert_close(ridged.inverse_key(2, keys), wanted, rtol=1e-9, atol=1e-12)
    assert '"ridge": 0.5' in ridged.run["settings"]
    plain = second_moments(llama, None, tokens=6000, sequence_length=48, cache_dir=tmp_path)
    C = plain.matrix(2).double()
    u = plain.inverse_key(2, keys)
    torch.testing.assert_close(u @ C, keys.double(), rtol=1e-7, atol=1e-7)
    assert ridged.path != plain.path
    with pytest.raises(UserError, match=r"expected keys \(n, 80\), got \(3, 79\)"):
        plain.inverse_key(2, keys[:, :-1])


def test_singular_matrices_are_named(llama, text_file, tmp_path):
    few = second_moments(llama, text_file, tokens=79, sequence_length=48, cache_dir=tmp_path)
    with pytest.raises(UserError, match="singular with 79 tokens"):
        few.inverse_key(1, torch.ones(1, 80))
    # Many tokens, few different keys: the same short text over and over.
    same = tmp_path / "same.txt"
    same.write_text("Paris Rome\n" * 400)
    ids = llama.tokenizer(same.read_text()).input_ids
    repeated = second_moments(llama, same, tokens=len(ids), sequence_length=2, cache_dir=tmp_path)
    with pytest.raises(UserError, match="use a larger corpus or a larger ridge"):
        repeated.inverse_key(0, torch.ones(1, 80))
    with pytest.raises(UserError, match=r"expected one of the collected layers .*, got 7"):
        few.matrix(7)


def test_sampled_text_is_the_models_own_and_is_kept(llama, tmp_path, monkeypatch):
    stages = []
    options = {"tokens": 400, "sequence_length": 24, "cache_dir": tmp_path}
    found = second_moments(llama, None, progress=lambda *r: stages.append(r), **options)
    assert stages[0] == ("sampling", 0, 400)
    assert found.n_tokens == 400
    file = next((tmp_path / "sampled").rglob("*.safetensors"))
    ids = load_tensors(file)[0]["ids"].tolist()
    sequences = [*ids[:16], ids[16][:16]]
    assert relative(found.matrix(4), hooked_moments(llama, sequences)[4]) < FORWARD
    monkeypatch.setattr(corpus_module, "sample_tokens", lambda *a, **k: pytest.fail("sampled again"))
    # 500 tokens need no further batch of texts.
    longer = second_moments(llama, None, **{**options, "tokens": 500})
    assert longer.path != found.path


def test_sampling_follows_the_models_distribution(small_tokenizer):
    model = small_model("gpt2", small_tokenizer, torch.float32)
    ids = sample_tokens(model, 4000, 1, seed=3)
    assert torch.equal(ids, sample_tokens(model, 4000, 1, seed=3))
    assert not torch.equal(ids, sample_tokens(model, 4000, 1, seed=4))
    batches = [sample_tokens(model, 20, 5, seed=(seed, batch)) for seed in (0, 1) for batch in (0, 1)]
    assert len({tuple(batch.flatten().tolist()) for batch in batches}) == 4
    with torch.no_grad():
        p = model.hf(torch.tensor([start_ids(model)])).logits[0, -1].double().softmax(0)
    count = torch.bincount(ids[:, 0], minlength=len(p)).double()
    spread = (4000 * p * (1 - p)).sqrt().clamp(min=1.0)
    assert float(((count - 4000 * p) / spread).abs().max()) < 5.0


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_sampling_one_candidate_is_greedy_generation(family, small_tokenizer):
    model = small_model(family, small_tokenizer, torch.float32)
    start = torch.tensor([start_ids(model)] * 2)
    wanted = model.hf.generate(
        start, attention_mask=torch.ones_like(start), max_new_tokens=20, min_new_tokens=20, do_sample=False,
        pad_token_id=0,
    )  # fmt: skip
    allowed = torch.ones(model.vocab_size, dtype=torch.bool)
    allowed[0] = False  # min_new_tokens keeps generate from the end token
    assert torch.equal(sample_tokens(model, 2, 20, seed=0, top_k=1, allowed=allowed), wanted[:, start.shape[1] :])


SCRIPT = """
import time
import torch
from small_models import small_model, trained_tokenizer
from fasttrace.editing import collect, lanes
lanes.CHECKPOINT_SECONDS = 0.0
slow = {slow}
inner = lanes.forward
def forward(*a, **k):
    time.sleep(slow)
    return inner(*a, **k)
lanes.forward = forward
model = small_model("llama", trained_tokenizer(), torch.float32)
seen = []
collect.second_moments(model, {text!r}, tokens=2000, sequence_length=40, batch_rows=80, cache_dir={cache!r},
                       progress=lambda *r: seen.append(r))
print(seen[0][1])
"""


def test_resumes_after_a_kill_with_the_same_bits(text_file, tmp_path):
    def start(cache, slow):
        script = SCRIPT.format(slow=slow, text=str(text_file), cache=str(tmp_path / cache))
        path = os.pathsep.join([str(HERE.parent / "support"), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)

    whole = start("whole", 0)
    assert whole.communicate(timeout=300)[0].strip() == "0"
    assert whole.returncode == 0
    killed = start("killed", 0.3)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "killed").rglob("partial-*.safetensors")):
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.5)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not list((tmp_path / "killed").rglob("layer-*"))
    resumed = start("killed", 0)
    assert 0 < int(resumed.communicate(timeout=300)[0]) < 2000
    assert resumed.returncode == 0
    wanted = sorted((tmp_path / "whole" / "moments").rglob("*.safetensors"))
    found = sorted((tmp_path / "killed" / "moments").rglob("*.safetensors"))
    assert [f.name for f in found] == [f"layer-{i:05d}.safetensors" for i in range(5)]
    assert [f.read_bytes() for f in found] == [f.read_bytes() for f in wanted]


def test_user_errors(llama, tmp_path):
    cache = {"cache_dir": tmp_path / "cache", "sequence_length": 48}
    with pytest.raises(UserError, match=r"expected a text file or a folder of \.txt files"):
        second_moments(llama, tmp_path / "none.txt", **cache)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UserError, match="expected at least one token, got no text"):
        second_moments(llama, tmp_path / "empty.txt", **cache)
    (tmp_path / "latin.txt").write_bytes("Über".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt': expected UTF-8 text, got other bytes at byte 0"):
        second_moments(llama, tmp_path / "latin.txt", **cache)
    longest = llama.config.max_position_embeddings
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"at least one \.txt file, got none"):
        second_moments(llama, tmp_path / "folder", **cache)
    for wrong, sentence in (
        ({"tokens": 0}, "second_moments: tokens: expected a whole number from 1 to 10000000000, got 0"),
        ({"layers": [2, 5]}, "second_moments: layers: expected some of 0 to 4, got 5"),
        ({"layers": []}, r"second_moments: layers: expected a list .*, got \[\]"),
        ({"sequence_length": longest + 1}, f"sequence_length: expected 2 to {longest}, got {longest + 1}"),
        ({"seed": -1}, "seed: expected a whole number from 0 to 9223372036854775807, got -1"),
        ({"ridge": -0.1}, "ridge: expected a number from 0 to 1000000, got -0.1"),
        ({"batch_rows": 0}, "batch_rows: expected a whole number from 1 to 1000000, got 0"),
    ):
        with pytest.raises(UserError, match=sentence):
            second_moments(llama, None, **{**cache, **wrong})
