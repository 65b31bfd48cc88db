"""The released code's files of second moments: written for its reader, read back, and refused where they are wrong."""

import json
import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from edit_cases import FACTS
from small_models import small_model

import fasttrace as ft
from fasttrace.cache import metadata_of
from fasttrace.editing import prepare_edit, prepare_mass_edit
from fasttrace.editing.collect import check_moments, import_moments, planned_moments, second_moments
from fasttrace.editing.moments import layer_file
from fasttrace.errors import UserError
from fasttrace.settings.moments import MomentSettings

TEXT = "The Eiffel Tower is located in the city of Paris. New York is not Rome.\n" * 200
OPTIONS = {"tokens": 2500, "sequence_length": 48}
PUBLISHED = "mom2_100000.npz"


@pytest.fixture(scope="module")
def llama(small_tokenizer):
    return small_model("llama", small_tokenizer, torch.float32)


@pytest.fixture(scope="module")
def collected(llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("collected")
    (folder / "text.txt").write_text(TEXT)
    return second_moments(llama, folder / "text.txt", cache_dir=folder / "cache", ridge=1e-3, **OPTIONS)


def made(
    folder, layer=2, *, module="model.layers.{}.mlp.down_proj", suffix=PUBLISHED, m=80, n=500, without=(), **arrays
):
    """A file as the released code writes it, with arrays changed by name. Returns its path."""
    keys = np.random.default_rng(layer).normal(size=(n, m)).astype(np.float32)
    whole = {
        "mom2.constructor": "util.runningstats.SecondMoment()",
        "mom2.count": n,
        "mom2.mom2": keys.T @ keys,
        "sample_size": 100000,
        **{name.replace("_", ".", 1) if name.startswith("mom2") else name: one for name, one in arrays.items()},
    }
    path = folder / f"{module.format(layer)}_float32_{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: one for name, one in whole.items() if name not in without})
    return path


def released_reader(path, sample_size):
    """What the released code's cached statistics give: the mean, or None where it would compute them anew."""
    state = dict(np.load(path).items())  # it does not allow pickles either
    if "sample_size" not in state or state["sample_size"] != sample_size:
        return None
    own = {name.removeprefix("mom2."): one for name, one in state.items() if name.startswith("mom2.")}
    return torch.from_numpy(own["mom2"]) / int(own["count"])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "opt", "bloom"])
def test_files_have_the_name_that_the_released_code_looks_for(family, small_tokenizer, tmp_path):
    model = small_model(family, small_tokenizer, torch.float32)
    module = {
        "llama": "model.layers.3.mlp.down_proj",
        "gpt2": "transformer.h.3.mlp.c_proj",
        "gptj": "transformer.h.3.mlp.fc_out",
        "opt": "model.decoder.layers.3.fc2",
        "bloom": "transformer.h.3.mlp.dense_4h_to_h",
    }[family]
    assert model.down_name(3) == module
    model.hf.get_submodule(module)  # raises where there is no such module
    found = second_moments(model, None, tokens=300, sequence_length=24, layers=[3], cache_dir=tmp_path / "cache")
    [path] = found.export(tmp_path / "data", model)
    assert path == tmp_path / "data" / model.name / "wikipedia_stats" / f"{module}_float32_{PUBLISHED}"
    C = import_moments(model, tmp_path / "data", cache_dir=tmp_path / "other").matrix(3)
    torch.testing.assert_close(C, found.matrix(3), rtol=2e-7, atol=0)


def test_the_released_reader_reads_what_is_exported(llama, collected, tmp_path):
    paths = collected.export(tmp_path, llama)
    assert len(paths) == 5
    for layer, path in enumerate(paths):
        read = released_reader(path, 100000)
        assert read.dtype == torch.float32
        torch.testing.assert_close(read, collected.matrix(layer), rtol=3e-7, atol=0)
        assert released_reader(path, 1000) is None
    with np.load(paths[0]) as arrays:
        assert int(arrays["mom2.count"]) == 2500
        assert str(arrays["fasttrace.corpus"]) == collected.corpus


def test_export_and_import_give_the_same_moments(llama, collected, tmp_path):
    collected.export(tmp_path / "data", llama)
    back = ft.import_moments(llama, tmp_path / "data", ridge=1e-3, cache_dir=tmp_path / "cache")
    assert (back.layers, back.n_tokens, back.model_hash) == ([0, 1, 2, 3, 4], 2500, llama.model_hash)
    assert back.key != collected.key
    for layer in back.layers:
        torch.testing.assert_close(back.matrix(layer), collected.matrix(layer), rtol=2e-7, atol=0)
        assert torch.equal(back.matrix(layer), back.matrix(layer).T)
    keys = torch.randn(3, 80, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(back.inverse_key(2, keys), collected.inverse_key(2, keys), rtol=1e-3, atol=1e-3)
    again = back.export(tmp_path / "data", llama)
    assert [path.name for path in again] == [path.name for path in collected.export(tmp_path / "data", llama)]


def test_a_file_of_the_released_code_is_read_as_the_mean(llama, tmp_path):
    path = made(tmp_path)
    with np.load(path) as arrays:
        wanted = arrays["mom2.mom2"].astype(np.float64) / 500
    found = import_moments(llama, path, cache_dir=tmp_path / "cache")
    assert (found.layers, found.n_tokens, found.source) == ([2], 500, str(path))
    assert np.abs(found.matrix(2).numpy() / wanted - 1).max() < 2**-23
    assert metadata_of(layer_file(found.path, 2))["n_tokens"] == 500


@pytest.mark.parametrize(
    "suffix",
    ["mom2_100000.npz", "mom2.npz", "mean-mom2-norm_mean_9.npz", "mom2_t{batch_tokens}_9.npz", "mom2_t4096_9.npz"],
)
@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f4", "<f2"])
def test_names_and_dtypes_of_the_released_code_are_read(llama, tmp_path, suffix, dtype):
    S = np.diag(np.arange(1, 81)).astype(dtype)
    path = made(tmp_path, suffix=suffix, mom2_mom2=S, mom2_count=np.array([4]), sample_size=np.float64("nan"))
    found = import_moments(llama, path, cache_dir=tmp_path / "cache").matrix(2)
    assert torch.equal(found, torch.diag(torch.arange(1, 81) / 4))


def test_pickled_arrays_that_are_not_needed_are_not_read(llama, tmp_path):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("it was unpickled",)

    found = import_moments(llama, made(tmp_path, sample_size=np.array([Trap()])), cache_dir=tmp_path / "cache")
    assert found.n_tokens == 500
    with pytest.raises(UserError, match="got pickled objects, which are not loaded"):
        import_moments(llama, made(tmp_path, mom2_mom2=np.array([Trap()])), cache_dir=tmp_path / "cache")


def test_identity_follows_from_the_content(llama, tmp_path):
    def key(folder, **options):
        return import_moments(llama, folder, cache_dir=tmp_path / "cache", **options).key

    for layer in (1, 2):
        made(tmp_path / "a", layer)
        made(tmp_path / "b/deeper", layer)
    first = key(tmp_path / "a")
    assert key(tmp_path / "b") == first
    assert key(tmp_path / "a", layers=[2]) == first  # more layers of one folder continue the same runs
    made(tmp_path / "b/deeper", 2, n=501)
    assert key(tmp_path / "b") != first
    made(tmp_path / "a", 2, mom2_count=499)
    assert key(tmp_path / "a") not in (first, key(tmp_path / "b"))


def test_a_sum_that_is_almost_symmetric_is_made_symmetric(llama, tmp_path):
    keys = np.random.default_rng(0).normal(size=(500, 80))
    S = (keys.T @ keys).astype(np.float32)
    S[3, 5] += 0.1  # 500 on the diagonal
    found = import_moments(llama, made(tmp_path, mom2_mom2=S), cache_dir=tmp_path / "cache").matrix(2)
    assert torch.equal(found, found.T)
    assert float(found[3, 5]) == pytest.approx(float(S[3, 5] + S[5, 3]) / 1000, rel=1e-6)


def test_a_unit_that_never_fires_has_zeros(llama, tmp_path):
    keys = np.random.default_rng(0).normal(size=(500, 80))
    keys[:, 7] = 0
    found = import_moments(llama, made(tmp_path, mom2_mom2=keys.T @ keys), cache_dir=tmp_path / "cache")
    assert not found.matrix(2)[7].any()


def changed(at, to):
    keys = np.random.default_rng(0).normal(size=(500, 80))
    S = keys.T @ keys
    for place in at:
        S[place] = to
    return {"mom2_mom2": S}


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"without": ["mom2.mom2"]}, "expected the array 'mom2.mom2', got none"),
        ({"without": ["mom2.count"]}, "expected the array 'mom2.count', got none"),
        ({"m": 79}, r"expected \(80, 80\) .* as the keys of 'llama' have width 80, got \(79, 79\) of float32"),
        ({"mom2_mom2": np.ones((80, 80), int)}, r"expected \(80, 80\) floating-point numbers .*, got .* of int64"),
        ({"mom2_count": 0}, "expected a positive number of tokens as 'mom2.count', got 0"),
        ({"mom2_count": 1.5}, "expected a positive number of tokens as 'mom2.count', got 1.5"),
        ({"mom2_count": np.nan}, "expected a positive number of tokens as 'mom2.count', got nan"),
        ({"mom2_count": 1e300}, r"expected a positive number of tokens as 'mom2.count', got 1e\+300"),
        ({"mom2_count": np.uint64(2**63)}, "expected a positive number of tokens as 'mom2.count', got 9.22"),
        ({"mom2_count": "many"}, "expected a whole number as 'mom2.count'"),
        (changed([(3, 4), (4, 3)], np.nan), "expected finite numbers, got NaN or infinity"),
        (changed([(3, 3)], -1), "expected a positive diagonal, got -1 on it"),
        ({"mom2_mom2": np.zeros((80, 80))}, "expected a positive diagonal, got 0 on it"),
        (changed([(3, 4)], 100), "expected a symmetric matrix"),
        (changed([(79, 78)], 100), "expected a symmetric matrix"),
        (changed([(3, 4), (4, 3)], 600), "expected a sum of k kᵀ, got entries larger than its diagonal allows"),
        ({"module": "transformer.h.{}.mlp.c_proj"}, r"module of 'llama', from 'model\.layers\.0\..*, got 'transf"),
        ({"layer": 5}, r"to 'model\.layers\.4\.mlp\.down_proj', got 'model\.layers\.5\.mlp\.down_proj'"),
        (
            {"suffix": "mean_100000.npz"},
            r"expected a file named as in 'model\.layers\.0\.mlp\.down_proj_float32_mom2_1",
        ),
        ({"fasttrace.model": "0123456789abcdef"}, "got those of another with hash '0123456789abcdef'"),
    ],
)
def test_wrong_files_are_refused_in_one_sentence_and_leave_nothing(llama, tmp_path, arrays, says):
    path = made(tmp_path / "data", **arrays)
    with pytest.raises(UserError, match=says) as found:
        import_moments(llama, path, cache_dir=tmp_path / "cache")
    assert "\n" not in str(found.value)
    assert path.name in str(found.value)
    assert not list((tmp_path / "cache").rglob("*"))


def test_damaged_files_are_refused(llama, tmp_path):
    """Cut anywhere, or with one byte changed: refused, or as before where the byte is of no array that is read."""
    path = made(tmp_path)
    good, raw = import_moments(llama, path, cache_dir=tmp_path / "good").matrix(2), path.read_bytes()
    generator, said = np.random.default_rng(0), []
    for number in range(60):
        at = int(generator.integers(len(raw)))
        broken = raw[:at] if number % 2 else raw[:at] + bytes([raw[at] ^ 0x55]) + raw[at + 1 :]
        path.write_bytes(broken)
        try:
            found = import_moments(llama, path, cache_dir=tmp_path / f"cache-{number}").matrix(2)
        except UserError as error:
            said.append(str(error))
        else:
            assert torch.equal(found, good)
    assert len(said) > 50
    assert not any("\n" in one for one in said)
    for content in (b"", b"PK", b"not a zip"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"expected a complete \.npz file, got one that cannot be read"):
            import_moments(llama, path, cache_dir=tmp_path / "cache")


def test_a_header_that_names_a_larger_array_is_not_believed(llama, tmp_path):
    path = made(tmp_path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part[:-400] if name == "mom2.mom2.npy" else part)
    with pytest.raises(UserError, match="cannot be read"):
        import_moments(llama, path, cache_dir=tmp_path / "cache")


def test_folders_are_checked(llama, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"mom2_100000\.npz', got a folder without an \.npz file"):
        import_moments(llama, tmp_path / "empty")
    made(tmp_path / "data", 1, suffix="mean_9.npz")
    with pytest.raises(UserError, match=r", got 1 other \.npz files"):
        import_moments(llama, tmp_path / "data")
    made(tmp_path / "data", 1)
    with pytest.raises(UserError, match="expected files of layers 0, 3 too, got only those of 1"):
        import_moments(llama, tmp_path / "data", layers=[3, 0, 1])
    assert import_moments(llama, tmp_path / "data", cache_dir=tmp_path / "cache").layers == [1]
    made(tmp_path / "data/more", 1, suffix="mom2_9.npz")
    with pytest.raises(UserError, match=r"one file of layer 1, got .*mom2_100000\.npz' and .*mom2_9\.npz'"):
        import_moments(llama, tmp_path / "data")
    (tmp_path / "data/a.txt").write_text("text")
    with pytest.raises(UserError, match=r"expected texts \(\.txt\) or second moments \(\.npz\), got both"):
        second_moments(llama, tmp_path / "data")
    with pytest.raises(UserError, match=r"none\.npz"):
        import_moments(llama, tmp_path / "none.npz")


def test_moments_of_another_model_are_not_exported(collected, small_tokenizer, tmp_path):
    with pytest.raises(UserError, match="expected second moments of 'gpt2'"):
        collected.export(tmp_path / "data", small_model("gpt2", small_tokenizer, torch.float32))
    assert not (tmp_path / "data").exists()


def test_a_corpus_of_files_is_imported(llama, collected, tmp_path, monkeypatch):
    """`corpus` names imported moments wherever it names a text: in second_moments, edits, mass edits and studies."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("fasttrace.editing.lanes.forward", lambda *_, **__: pytest.fail("a pass ran"))
    data = tmp_path / "data"
    collected.export(data, llama)
    imported = import_moments(llama, data, ridge=1e-3)
    assert second_moments(llama, data, ridge=1e-3).run["run_id"] == imported.run["run_id"]
    common = {"contexts": ["{}"], "essence": 0, "steps": 2}
    for prepare, layer in ((prepare_edit, {"layers": [2]}), (prepare_mass_edit, {"layer": 2})):
        given = prepare(llama, FACTS[:1], moments=imported, **layer, **common)
        named = prepare(llama, FACTS[:1], corpus=data, ridge=1e-3, **layer, **common)
        assert given.run["run_id"] == named.run["run_id"]
        settings = json.loads(named.run["settings"])
        assert (settings["moments"], settings["corpus"]) == (imported.key, str(data))
        again = prepare(llama, FACTS[:1], corpus=settings["corpus"], ridge=1e-3, corpus_tokens=2500, **layer, **common)
        assert again.run["run_id"] == named.run["run_id"]
    with pytest.raises(
        UserError, match=r"tokens: expected no value with second moments from files \(2500 tokens\), got 7"
    ):
        prepare_edit(llama, FACTS[:1], corpus=data, corpus_tokens=7, layers=[2], **common)
    for path in data.rglob("*layers.1.*"):
        path.unlink()
    with pytest.raises(UserError, match="expected files of layers 1 too"):
        prepare_edit(llama, FACTS[:1], corpus=data, layers=[1], method="rome", **common)


def test_a_study_checks_its_files_before_the_first_pass(llama, tmp_path):
    path = made(tmp_path)
    asked = MomentSettings(corpus=path)
    check_moments(llama, asked)
    assert planned_moments(llama, asked, [2]).passes == 0
    with pytest.raises(UserError, match="expected files of layers 3 too"):
        check_moments(llama, MomentSettings(corpus=path, layers=[3]))
    made(tmp_path, n=79)
    with pytest.raises(UserError, match="singular with 79 tokens"):
        check_moments(llama, asked)
    check_moments(llama, MomentSettings(corpus=path, ridge=1e-3))


def test_size_and_time_are_said_before_collecting(llama, tmp_path, caplog):
    (tmp_path / "text.txt").write_text(TEXT)
    options = {**OPTIONS, "cache_dir": tmp_path / "cache"}
    before = []
    with caplog.at_level(logging.INFO, logger="fasttrace.editing"):
        second_moments(
            llama,
            tmp_path / "text.txt",
            layers=[0, 3],
            **options,
            progress=lambda *_: before.append(len(caplog.records)),
        )
        [said] = caplog.messages
        second_moments(llama, tmp_path / "text.txt", layers=[0, 3], **options)
        assert len(caplog.messages) == 1  # there is nothing left to collect
        second_moments(llama, tmp_path / "text.txt", layers=[0, 1, 3, 4], memory=80 * 80 * 4, **options)
    assert before[0] == 1
    assert said.startswith("second moments of 2 layers of 80 × 80: 51 kB on disk, 102 kB of memory; about ")
    assert caplog.messages[1].startswith(
        "second moments of 2 layers of 80 × 80: 51 kB on disk, 51 kB of memory in each of 2 passes; about "
    )


def test_predicted_work_is_that_of_the_shapes(llama):
    m, tokens = llama.key_width, 1000
    text = planned_moments(llama, MomentSettings(corpus=Path(__file__), tokens=tokens), [1, 3])
    sampled = planned_moments(llama, MomentSettings(tokens=tokens), [1, 3])
    assert text.disk == 2 * m * m * 4
    assert (text.rows, text.sampling) == (4 * tokens, 0)
    products = 2 * (2 * 48 * 48 + 2 * 48 * 16 + 3 * 48 * m)
    assert text.flops == tokens * (4 * products + 2 * m * m)
    assert sampled.flops == text.flops
    assert sampled.sampling == tokens * (5 * products + 2 * 48 * llama.vocab_size)
    assert text.seconds(llama) > 0
