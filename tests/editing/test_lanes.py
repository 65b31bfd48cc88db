"""Second moments by several workers have the bits of those by one process: lanes, interruptions, sampled text, and a
driver without a model."""

import numpy as np
import pytest
import torch
from other_crews import Apart, Copies, Stopped
from small_models import small_model

from fasttrace.cluster.crew import Alone
from fasttrace.editing import corpus as corpus_module
from fasttrace.editing import lanes as lanes_module
from fasttrace.editing.collect import check_moments, collected, resolved, second_moments
from fasttrace.editing.lanes import LANES, lanes
from fasttrace.errors import UserError
from fasttrace.ops.second_moment import second_moment_
from fasttrace.settings.moments import MomentSettings

# 40 batches of a sequence each in lanes of 2 or 3: 0–1, 2–4, 5–6, 7–9, …
LENGTH, COUNT = 45, 40
ASKED = {"tokens": LENGTH * COUNT - 7, "sequence_length": LENGTH, "batch_rows": LENGTH}


@pytest.fixture
def llama(small_tokenizer):
    return small_model("llama", small_tokenizer, torch.float32)


def by(crew, root, corpus, progress=None, **asked):
    """The second moments by a crew, as a driver without a model collects them."""
    return collected(crew, *crew.ask(resolved, MomentSettings(corpus=corpus, **{**ASKED, **asked})), root, progress)


def files(root, kind="moments"):
    """{path in the folder: bytes} of every file."""
    return {file.relative_to(root): file.read_bytes() for file in sorted((root / kind).rglob("*.safetensors"))}


def test_lanes_are_consecutive_and_nearly_equal():
    for count in (1, 2, LANES - 1, LANES, LANES + 1, 40, 1000):
        found = lanes(count)
        assert len(found) == min(LANES, count)
        assert [i for lane in found for i in lane] == list(range(count))
        assert max(map(len, found)) - min(map(len, found)) <= 1


def test_a_lane_begins_at_zero_and_the_total_adds_the_lanes(llama, corpus, tmp_path, monkeypatch):
    keys, inner = [], lanes_module.forward

    def forward(model, batch, *, on_key):
        def both(layer, own):
            if layer == 2:
                keys.append(own.of())
            on_key(layer, own)

        return inner(model, batch, on_key=both)

    monkeypatch.setattr(lanes_module, "forward", forward)
    found = second_moments(llama, corpus, cache_dir=tmp_path, layers=[2], **ASKED)
    assert len(keys) == COUNT
    total = torch.zeros(80, 80)
    for lane in lanes(COUNT):
        own = torch.zeros(80, 80)
        for i in lane:
            second_moment_(own, keys[i])
        total += own
    assert torch.equal(found.matrix(2), (total.double() / ASKED["tokens"]).float())
    wanted = sum(one.double().T @ one.double() for one in keys) / ASKED["tokens"]
    assert float((found.matrix(2) - wanted).norm() / wanted.norm()) < 1e-6


@pytest.mark.parametrize(
    ("family", "dtype", "asked"),
    [
        ("llama", torch.float32, {}),
        ("llama", torch.bfloat16, {}),
        ("gpt2", torch.float32, {"batch_rows": 200}),  # as many lanes as batches
        ("llama", torch.float32, {"memory": 2 * 2 * 80 * 80 * 4}),  # groups of two layers
        ("qwen2-moe", torch.float32, {"layers": [1, 2]}),
        ("mixtral", torch.bfloat16, {"layers": [1, 2], "memory": 100_000}),
    ],
)
@pytest.mark.parametrize("wide", [False, True], ids=["float32 sums", "float64 sums"])
def test_workers_get_the_bits_of_one_process(
    family, dtype, asked, wide, small_tokenizer, corpus, tmp_path, monkeypatch
):
    if wide:
        monkeypatch.setattr("fasttrace.editing.collect.FLOAT32_BATCHES", 3)
    models = [small_model(family, small_tokenizer, dtype) for _ in range(3)]
    alone = second_moments(models[0], corpus, cache_dir=tmp_path / "alone", **{**ASKED, **asked})
    seen = []
    found = by(Copies(*models[1:]), tmp_path / "many", corpus, lambda *said: seen.append(said), **asked)
    assert files(tmp_path / "many") == files(tmp_path / "alone")
    assert found.run["run_id"] == alone.run["run_id"]
    assert (found.experts, found.layers, found.source) == (alone.experts, alone.layers, alone.source)
    assert seen[0][:2] == ("moments", 0)
    assert seen[-1][1] == seen[-1][2]
    assert seen == sorted(seen)


def interrupted(model, root, corpus, after, monkeypatch):
    """Collect until `after` batches are done."""
    done, inner = [], lanes_module.forward

    def forward(*args, **keywords):
        if len(done) == after:
            raise Stopped
        done.append(inner(*args, **keywords))

    with monkeypatch.context() as patched:
        patched.setattr(lanes_module, "forward", forward)
        with pytest.raises(Stopped):
            second_moments(model, corpus, cache_dir=root, **ASKED)
    assert not list(root.rglob("layer-*"))


def counted(monkeypatch):
    """A list that gets an entry with every pass."""
    passes, inner = [], lanes_module.forward
    monkeypatch.setattr(lanes_module, "forward", lambda *a, **k: (passes.append(0), inner(*a, **k)))
    return passes


@pytest.mark.parametrize("after", [1, 2, 3, 5, 39])  # in the middle of a lane, between lanes, and before the last batch
@pytest.mark.parametrize("workers", [False, True], ids=["by itself", "by workers"])
def test_an_interrupted_process_is_resumed(after, workers, llama, small_tokenizer, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(lanes_module, "CHECKPOINT_SECONDS", 0.0)
    second_moments(llama, corpus, cache_dir=tmp_path / "whole", **ASKED)
    interrupted(llama, tmp_path / "cut", corpus, after, monkeypatch)
    passes = counted(monkeypatch)
    other = small_model("llama", small_tokenizer, torch.float32)
    seen = []
    crew = Copies(llama, other) if workers else Alone(llama)
    by(crew, tmp_path / "cut", corpus, lambda *said: seen.append(said[1]))
    assert len(passes) == COUNT - after
    assert seen[0] == LENGTH * after
    assert files(tmp_path / "cut") == files(tmp_path / "whole"), "and no checkpoint is left"


@pytest.mark.parametrize("done", [1, 7, 15])
def test_interrupted_workers_are_resumed(done, llama, small_tokenizer, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(lanes_module, "CHECKPOINT_SECONDS", 0.0)
    other = small_model("llama", small_tokenizer, torch.float32)
    second_moments(llama, corpus, cache_dir=tmp_path / "whole", **ASKED)
    with pytest.raises(Stopped):
        by(Copies(llama, other, most=done), tmp_path / "cut", corpus)
    passes = counted(monkeypatch)
    second_moments(llama, corpus, cache_dir=tmp_path / "cut", **ASKED)
    assert len(passes) == COUNT - lanes(COUNT)[done].start
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_checkpoint_of_other_batches_is_not_resumed(llama, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(lanes_module, "CHECKPOINT_SECONDS", 0.0)
    interrupted(llama, tmp_path / "cut", corpus, 5, monkeypatch)
    asked = {**ASKED, "batch_rows": 3 * LENGTH}
    second_moments(llama, corpus, cache_dir=tmp_path / "whole", **asked)
    second_moments(llama, corpus, cache_dir=tmp_path / "cut", **asked)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_no_checkpoint_is_written_before_its_time(llama, corpus, tmp_path, monkeypatch):
    interrupted(llama, tmp_path / "cut", corpus, 39, monkeypatch)
    assert not files(tmp_path / "cut")


def test_workers_sample_the_text_of_one_process(llama, small_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "SAMPLED_ROWS", 4)
    other = small_model("llama", small_tokenizer, torch.float32)
    second_moments(llama, None, cache_dir=tmp_path / "alone", **ASKED)
    texts = files(tmp_path / "alone", "sampled")
    assert len(texts) == 10
    half = tmp_path / "many"
    for name in sorted(texts)[::2]:  # what is there is not sampled again
        (half / name).parent.mkdir(parents=True, exist_ok=True)
        (half / name).write_bytes(texts[name])
    seen = []
    by(Copies(llama, other), half, None, lambda *said: seen.append(said))
    assert files(half, "sampled") == texts
    assert files(half) == files(tmp_path / "alone")
    assert [said for said in seen if said[0] == "sampling"][-1] == ("sampling", ASKED["tokens"], ASKED["tokens"])


def test_a_driver_needs_no_model(llama, corpus, tmp_path, caplog):
    sampled = {"tokens": 300, "sequence_length": 24, "batch_rows": LENGTH}
    whole = second_moments(llama, corpus, cache_dir=tmp_path / "alone", **ASKED)
    second_moments(llama, None, cache_dir=tmp_path / "alone", **sampled)
    exported = whole.export(tmp_path / "npz", llama)[0].parent
    second_moments(llama, exported, cache_dir=tmp_path / "alone")
    caplog.set_level("INFO", logger="fasttrace.editing")
    with Apart("llama", torch.float32) as crew:
        for source, asked in ((corpus, {}), (None, sampled)):
            by(crew, tmp_path / "apart", source, **asked)
        imported = by(crew, tmp_path / "apart", exported, tokens=ASKED["tokens"])
        crew.ask(check_moments, MomentSettings(corpus=corpus, **ASKED))
        with pytest.raises(UserError, match="layers: expected some of 0 to 4, got 5"):
            by(crew, tmp_path / "apart", corpus, layers=[5])
    assert files(tmp_path / "apart") == files(tmp_path / "alone")
    assert files(tmp_path / "apart", "sampled") == files(tmp_path / "alone", "sampled")
    np.testing.assert_allclose(imported.matrix(1), whole.matrix(1), rtol=2e-7)
    assert caplog.messages[0].startswith("second moments of 5 layers of 80 × 80: 128 kB on disk, 256 kB of memory")
