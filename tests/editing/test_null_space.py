"""Null spaces against NumPy's eigenvectors, and projections read from the files that AlphaEdit publishes."""

import json
import zipfile

import numpy as np
import pytest
import torch
from edit_cases import FACTS
from safetensors.torch import save_file
from small_models import small_model

import fasttrace as ft
from fasttrace.editing.null_space import has_null_space, load_projection, null_space
from fasttrace.errors import UserError


@pytest.fixture(scope="module")
def llama(small_tokenizer):
    return small_model("llama", small_tokenizer, torch.float32)


def moment(m=80, seed=0):
    """A C with eigenvalues from 1 down to 1e-8."""
    keys = np.random.default_rng(seed).normal(size=(3 * m, m)) * np.logspace(0, -4, m)
    return keys.T @ keys / len(keys)


def projections(m, n=2):
    bases = [null_space(torch.from_numpy(moment(m, seed)), 1e-3) for seed in range(n)]
    return torch.stack([(U @ U.T).float() for U in bases])


@pytest.mark.parametrize("of", ["absolute", "trace"])
def test_the_null_space_is_numpys(of):
    C, threshold = moment(), 1e-3
    values, vectors = np.linalg.eigh(C)
    below = vectors[:, values < (threshold if of == "absolute" else threshold * np.trace(C))]
    found = null_space(torch.from_numpy(C), threshold, of)
    assert 0 < found.shape[1] < 80
    least = values[0] / (1 if of == "absolute" else np.trace(C))
    wanted = {0.9 * least: False, 1.1 * least: True, threshold: True}
    assert {bound: has_null_space(torch.from_numpy(C), bound, of) for bound in wanted} == wanted
    assert found.shape == below.shape
    assert found.dtype == torch.float64
    # Eigenvectors have no sign, so the projections are compared.
    assert np.abs(found.numpy() @ found.numpy().T - below @ below.T).max() < 1e-10
    assert np.abs(found.numpy().T @ found.numpy() - np.eye(found.shape[1])).max() < 1e-12


def test_the_two_thresholds_are_of_different_things():
    C = torch.from_numpy(moment())
    sizes = [null_space(C * scale, 1e-3, of).shape[1] for of in ("absolute", "trace") for scale in (1, 100)]
    assert sizes[1] < sizes[0]  # an absolute bound depends on the scale of C
    assert sizes[2] == sizes[3]


def test_an_eigenvalue_at_the_threshold_is_not_below_it():
    C = torch.diag(torch.tensor([1.0, 0.25, 0.125, 2.0]))
    found = null_space(C, 0.25)
    assert found.abs().tolist() == [[0.0], [0.0], [1.0], [0.0]]
    assert null_space(C, 0.26).shape == (4, 2)


def test_what_has_no_null_space_is_refused():
    C = torch.eye(3)
    with pytest.raises(UserError, match=r"eigenvalue of C below 0.5, got none: the least is 1, so use a larger"):
        null_space(C, 0.5)
    with pytest.raises(UserError, match=r"below 0.3 \(0.1 of the trace\), got none"):
        null_space(C, 0.1, "trace")
    with pytest.raises(UserError, match="got NaN or infinity"):
        null_space(torch.full((3, 3), torch.nan), 0.5)
    with pytest.raises(UserError, match=r"expected a square matrix, got shape \(2, 3\)"):
        null_space(torch.zeros(2, 3), 0.5)


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_published_projection_is_read(llama, tmp_path, ending, dtype):
    P = projections(llama.key_width).to(dtype)
    path = tmp_path / f"null_space_project.{ending}"
    if ending == "pt":
        torch.save(P, path)
    else:
        save_file({"P": P}, path)
    found = load_projection(path, llama, [1, 3])
    assert torch.equal(found, P)
    assert found.dtype == dtype
    torch.save(torch.zeros_like(P), path)  # the file's later content is not the tensor's
    assert torch.equal(found, P)


def test_a_projection_in_tf32_is_read(llama, tmp_path):
    U = null_space(torch.from_numpy(moment(llama.key_width)), 1e-3).float()
    rounded = (U.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)
    torch.save((rounded @ rounded.T)[None], tmp_path / "P.pt")
    assert load_projection(tmp_path / "P.pt", llama, [0]).shape == (1, llama.key_width, llama.key_width)


def changed(P, how):
    P = P.clone()
    if how == "NaN":
        P[1, 3, 4] = torch.nan
    elif how == "zero":
        P[1] = 0
    elif how == "asymmetric":
        P[1, 3, 4] += 2e-3
    elif how == "scaled":
        P[1] *= 1.005
    elif how == "C":
        P[1] = torch.from_numpy(moment(len(P[1]), 1))
    return P


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("NaN", "layer 4: expected finite numbers, got NaN or infinity"),
        ("zero", "layer 4: expected a projection, got zero: the null space is empty"),
        ("asymmetric", "layer 4: expected a symmetric matrix .* differs by 0.002 "),
        ("scaled", r"layer 4: expected a projection, ‖PP − P‖ ≤ 0.001 ‖P‖, got 0.005\d* ‖P‖"),
        ("C", "layer 4: expected a projection"),
    ],
)
def test_what_is_no_projection_is_refused(llama, tmp_path, how, says):
    P = projections(llama.key_width)
    torch.save(changed(P, how), tmp_path / "P.pt")
    with pytest.raises(UserError, match=says):
        load_projection(tmp_path / "P.pt", llama, [0, 4])


BROKEN = {"empty stack": b"\x80\x02.", "unknown memo": b"\x80\x02h\x05.", "odd build": b"\x80\x02K\x01}b."}


class Anything:
    """An object that a pickle can name."""


def written(kind, m, path):
    P = projections(m)
    if kind == "other width":
        torch.save(projections(m - 1), path)
    elif kind == "matrix":
        torch.save(P[0], path)
    elif kind == "integers":
        torch.save(P.int(), path)
    elif kind == "sparse":
        torch.save(P.to_sparse(), path)
    elif kind == "list":
        torch.save([P], path)
    elif kind == "object":
        torch.save(Anything(), path)
    elif kind == "meta":
        torch.save(P.to("meta"), path)
    elif kind in BROKEN:
        torch.save(P, path)
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, part in parts.items():
                archive.writestr(name, BROKEN[kind] if name.endswith("data.pkl") else part)
    elif kind == "truncated":
        torch.save(P, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "npz":
        np.savez(path, P=P.numpy())
        path.with_name("P.pt.npz").rename(path)
    elif kind == "text":
        path.write_text("P")
    elif kind == "folder":
        path.mkdir()
    elif kind == "two":
        save_file({"P": P, "Q": P.clone()}, path)
    elif kind == "half":
        save_file({"P": P}, path)
        path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("other width", r"expected a tensor \(2, 80, 80\), .* for each of 2 layers, got one of shape \(2, 79, 79\)"),
        ("matrix", r"expected a tensor \(2, 80, 80\), .*, got one of shape \(80, 80\)"),
        ("integers", "expected float32 or float64, got int32"),
        ("sparse", "expected a dense tensor, got a sparse one"),
        ("list", "expected one tensor, got list"),
        ("object", "expected one tensor, got a file with other objects, which are not loaded"),
        ("meta", "expected a tensor with its numbers, got one without"),
        *((kind, "expected .*, got ") for kind in BROKEN),
        ("truncated", "expected a complete file of torch.save"),
        ("npz", "expected a complete file, got one that cannot be read"),
        ("text", "expected a complete file of torch.save"),
        ("missing", "expected a .pt or .safetensors file, got none"),
        ("folder", "expected a .pt or .safetensors file, got a folder"),
        ("two", "expected one tensor, got 2 tensors"),
        ("half", "expected a complete file, got one that cannot be read"),
    ],
)
def test_other_files_are_refused_in_one_sentence(llama, tmp_path, kind, says):
    path = tmp_path / ("P.safetensors" if kind in ("two", "half") else "P.pt")
    written(kind, llama.key_width, path)
    with pytest.raises(UserError, match=says) as found:
        load_projection(path, llama, [0, 4])
    assert "\n" not in str(found.value)


def test_a_layer_that_the_model_lacks_is_refused(llama, tmp_path):
    torch.save(projections(llama.key_width), tmp_path / "P.pt")
    with pytest.raises(UserError, match="expected layers from 0 to 4, got 5"):
        load_projection(tmp_path / "P.pt", llama, [4, 5])
    with pytest.raises(UserError, match="for each of 3 layers, got one of shape"):
        load_projection(tmp_path / "P.pt", llama, [0, 1, 2])


def test_projections_take_the_place_of_second_moments(llama, corpus, tmp_path, monkeypatch, caplog):
    """The edits of both are the same, and nothing is collected."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    about = {"method": "alphaedit", "layers": [2], "window_size": 2, "contexts": ["{}"], "essence": 0, "steps": 3}
    moments = ft.second_moments(llama, corpus, tokens=3000, sequence_length=32)
    wanted = ft.edit(llama, FACTS, moments=moments, null_threshold=0.01, null_unit="trace", **about)
    window = sorted(wanted.edits[0].updates)
    bases = [null_space(moments.matrix(at), 0.01, "trace") for at in window]
    path = tmp_path / "P.pt"
    torch.save(torch.stack([(U @ U.T).float() for U in bases]), path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    found = ft.edit(llama, FACTS, projections=str(path), **about)
    assert not list((tmp_path / "empty").rglob("*moments*"))
    assert f"are taken, in their order, for layers {', '.join(map(str, window))}" in caplog.text
    for mine, theirs in zip(found.edits, wanted.edits, strict=True):
        for at in window:
            torch.testing.assert_close(mine.updates[at].matrix(), theirs.updates[at].matrix(), rtol=1e-3, atol=1e-7)
    settings = json.loads(found.run["settings"])
    assert not {"corpus", "corpus_tokens", "moments", "ridge"} & settings.keys()
    assert settings["templates"] == ["{}"]
    with pytest.raises(UserError, match="corpus_tokens: expected a value only without projections, got both"):
        ft.edit(llama, FACTS, projections=str(path), corpus_tokens=2000, **about)
