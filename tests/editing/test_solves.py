"""The methods' solves against their papers' formulas, alone, together and after earlier edits."""

from types import SimpleNamespace

import closed_form
import numpy as np
import pytest
import torch

from fasttrace.cache import save_tensors
from fasttrace.editing.methods import SOLVES, solve_of
from fasttrace.editing.methods.base import PastKeys
from fasttrace.editing.moments import Moments, Place, layer_file
from fasttrace.errors import UserError
from fasttrace.settings.methods import METHODS

M, D, LAYER = 24, 10, 3
OPTIONS = {
    "memit": {"covariance_weight": 3.0, "norm_weight": 0.25},
    "emmet": {"covariance_weight": 3.0, "norm_weight": 0.25, "slack": 0.1},
    "alphaedit": {"norm_weight": 2.0, "null_threshold": 0.3},
    "pmet": {"covariance_weight": 3.0},
}


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.fixture
def C():
    """A second moment in float32, whose eigenvalues reach from about 0.01 to 4."""
    basis, _ = np.linalg.qr(normal(0, M, M))
    return ((basis * np.geomspace(0.01, 4.0, M)) @ basis.T).astype(np.float32)


@pytest.fixture
def solve(C, tmp_path):
    """method, options → its solve, with C on disk."""

    def make(method, C=C, **options):
        folder = tmp_path / "moments"
        folder.mkdir(exist_ok=True)
        C = torch.from_numpy(C)
        save_tensors(layer_file(folder, LAYER), {"C": 0.5 * (C + C.T)}, {})
        about = {"model_hash": "", "corpus": "", "corpus_hash": "", "n_tokens": 1000, "requested_tokens": 1000}
        moments = Moments(run={}, key="", layers=[LAYER], path=folder, **about)
        own = {**OPTIONS[method], **options}
        if "projections" in own:
            del own["null_threshold"]
        given = METHODS[method].settings(**own)
        model = SimpleNamespace(name="made", n_layers=LAYER + 1, key_width=M, device=torch.device("cpu"))
        return solve_of(method, given, moments, model, [Place(LAYER)])

    return make


def exact(method, R, K, C, K_p, **options):
    C = torch.from_numpy(C)
    C = (0.5 * (C + C.T)).double().numpy()
    return getattr(closed_form, method)(R, K, C, K_p, **{**OPTIONS[method], **options})


def rows(K):
    return torch.from_numpy(np.ascontiguousarray(K.T))


def off(found, wanted):
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("p", [0, 5, M, M + 8], ids=lambda p: f"{p} earlier keys")
@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.parametrize("method", SOLVES)
def test_a_solve_is_the_published_formula(method, n, p, C, solve):
    R, K, K_p = normal(1, D, n), normal(2, M, n), normal(3, M, p)
    past = PastKeys(rows(K_p)) if p else None
    assert past is None or (past.keys is None) == (p > M), "more keys than m are kept as their sum"
    found = solve(method).together(LAYER, rows(K), past)
    assert off(R @ found.rows.numpy(), exact(method, R, K, C, K_p)) < 1e-9


@pytest.mark.parametrize("method", SOLVES)
def test_facts_alone_are_solves_of_one_fact(method, C, solve):
    R, K = normal(1, D, 4), normal(2, M, 4)
    found = solve(method).alone(LAYER, rows(K)).numpy()
    for i in range(4):
        one = [x[:, i : i + 1] for x in (R, K)]
        assert off(np.outer(R[:, i], found[i]), exact(method, *one, C, np.zeros((M, 0)))) < 1e-9


@pytest.mark.parametrize("sizes", [(1, 1, 1), (4, 3, 9), (20, 2, 8, 1)], ids=str)
@pytest.mark.parametrize("method", ["memit", "alphaedit"])
def test_groups_with_earlier_keys_are_one_solve_of_all(method, sizes, solve):
    """With fixed keys and values, a group's residual is what the earlier groups left of its values."""
    n = sum(sizes)
    K, V, W = normal(2, M, n), normal(4, D, n), normal(5, D, M)
    one = solve(method)
    whole = (V - W @ K) @ one.together(LAYER, rows(K)).rows.numpy()
    total, past, first = np.zeros((D, M)), PastKeys.none(rows(K)), 0
    apart = np.zeros((D, M))
    for size in sizes:
        group = slice(first, first + size)
        found = one.together(LAYER, rows(K[:, group]), past)
        total = total + (V[:, group] - (W + total) @ K[:, group]) @ found.rows.numpy()
        alone = one.together(LAYER, rows(K[:, group]))
        apart = apart + (V[:, group] - (W + apart) @ K[:, group]) @ alone.rows.numpy()
        past, first = past.with_keys(rows(K[:, group]), found.moved), first + size
    assert (past.keys is None) == (n > M)
    assert off(total, whole) < 1e-9
    assert off(apart, whole) > 1e-3, "without earlier keys it would be the same, so the test would not see them"


def test_past_keys_that_were_read_from_a_file_solve_the_same(solve):
    K, K_p = normal(2, M, 3), normal(3, M, 5)
    one = solve("memit")
    grown = PastKeys.none(rows(K)).with_keys(rows(K_p), one.moved(LAYER, rows(K_p)))
    for past in (PastKeys(rows(K_p)), PastKeys(None, rows(K_p).T @ rows(K_p))):
        found, wanted = (one.together(LAYER, rows(K), which).rows for which in (past, grown))
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_emmet_gives_new_keys_exactly_their_values_and_one_key_is_rome(C, solve):
    R, K = normal(1, D, 6), normal(2, M, 6)
    change = R @ solve("emmet", slack=0.0).together(LAYER, rows(K)).rows.numpy()
    assert off(change @ K, R) < 1e-9
    slack = R @ solve("emmet").together(LAYER, rows(K)).rows.numpy()
    assert off(slack @ K, R) > 1e-3
    one = solve("emmet", norm_weight=0.0)
    u = one.moments.inverse_key(LAYER, rows(K[:, :1]))[0].numpy()
    rome = np.outer(R[:, 0], u) / (u @ K[:, 0])
    assert off(R[:, :1] @ one.together(LAYER, rows(K[:, :1])).rows.numpy(), rome) < 1e-9


def test_emmet_with_slack_is_memit_of_its_weight(solve):
    """(KᵀC⁻¹K/λ + sI)⁻¹ Kᵀ C⁻¹/λ = Kᵀ (sλC + K Kᵀ)⁻¹, by the Woodbury identity."""
    K = rows(normal(2, M, 5))
    emmet = solve("emmet", covariance_weight=4.0, slack=0.25, norm_weight=0.0).together(LAYER, K).rows
    memit = solve("memit", covariance_weight=1.0, norm_weight=0.0).together(LAYER, K).rows
    torch.testing.assert_close(emmet, memit, rtol=1e-9, atol=1e-12)


def test_alphaedit_leaves_keys_outside_the_null_space_alone(C, solve):
    values, vectors = np.linalg.eigh(C.astype(np.float64))
    kept = vectors[:, values >= OPTIONS["alphaedit"]["null_threshold"]]
    assert 0 < kept.shape[1] < M
    change = normal(1, D, 6) @ solve("alphaedit").together(LAYER, rows(normal(2, M, 6))).rows.numpy()
    assert np.abs(change @ kept).max() < 1e-6 * np.abs(change).max()


def test_alphaedit_alone_takes_a_singular_C(C, solve):
    values, vectors = np.linalg.eigh(C.astype(np.float64))
    singular = ((vectors * np.where(values > 0.3, values, 0.0)) @ vectors.T).astype(np.float32)
    K = rows(normal(2, M, 3))
    assert solve("alphaedit", singular).together(LAYER, K).rows.abs().max() > 0
    for method in ("memit", "emmet"):
        with pytest.raises(UserError, match=r"second moment C of layer 3 \(24 x 24\) is singular"):
            solve(method, singular, norm_weight=0.0).together(LAYER, K)
        with pytest.raises(UserError, match=r"second moment C of layer 3 \(24 x 24\) is singular"):
            solve(method, singular, norm_weight=0.0).condition(LAYER, K.device)


@pytest.mark.parametrize("method", ["memit", "emmet"])
def test_the_condition_is_of_the_matrix_that_is_solved_with(method, C, solve):
    values, vectors = np.linalg.eigh(C.astype(np.float64))
    singular = (vectors * np.where(values > 0.3, values, 0.0)) @ vectors.T
    system = singular + OPTIONS[method]["norm_weight"] / OPTIONS[method]["covariance_weight"] * np.eye(M)
    scale = 1 / np.sqrt(np.diag(system))
    found = solve(method, singular.astype(np.float32)).condition(LAYER, torch.device("cpu"))
    assert found == pytest.approx(np.linalg.cond(system * scale * scale[:, None]), rel=0.05)


def test_a_threshold_is_absolute_or_a_share_of_the_trace(C, solve):
    K = rows(normal(2, M, 3))
    share = OPTIONS["alphaedit"]["null_threshold"] / float(np.trace(C.astype(np.float64)))
    absolute, relative = solve("alphaedit"), solve("alphaedit", null_threshold=share * (1 + 1e-9), null_unit="trace")
    torch.testing.assert_close(absolute.together(LAYER, K).rows, relative.together(LAYER, K).rows)
    with pytest.raises(
        UserError, match=r"null_threshold: layer 3: null_space: expected an eigenvalue of C below 0.001, got none"
    ):
        solve("alphaedit", null_threshold=0.001)  # before any edit is optimised


@pytest.mark.parametrize(
    ("method", "options", "freedom"),
    [
        ("memit", {"covariance_weight": 1e-25, "norm_weight": 0.0}, "covariance_weight"),
        ("emmet", {"slack": 0.0}, "slack"),
        ("alphaedit", {"norm_weight": 1e-25}, "norm_weight"),
    ],
)
def test_facts_that_share_a_key_are_refused_where_nothing_frees_them(method, options, freedom, solve):
    K = rows(normal(2, M, 3))[[0, 1, 2, 1]]
    with pytest.raises(UserError, match=rf"{method}: expected a {freedom} large enough for 4 facts at layer 3"):
        solve(method, **options).together(LAYER, K)
    assert solve(method).together(LAYER, K).condition > 1


@pytest.mark.parametrize("p", [0, 5, M + 8], ids=lambda p: f"{p} earlier keys")
def test_a_projection_from_a_file_takes_the_place_of_that_of_C(p, C, solve, tmp_path):
    values, vectors = np.linalg.eigh(C.astype(np.float64))
    kept = vectors[:, values < OPTIONS["alphaedit"]["null_threshold"]]
    path = tmp_path / "null_space_project.pt"
    torch.save(torch.from_numpy(kept @ kept.T).float()[None], path)
    K, past = rows(normal(2, M, 3)), PastKeys(rows(normal(3, M, p)))
    wanted = solve("alphaedit").together(LAYER, K, past).rows
    other = np.eye(M, dtype=np.float32)  # a C that has no null space
    found = solve("alphaedit", other, projections=str(path)).together(LAYER, K, past).rows
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    torch.save(torch.zeros(2, M, M), path)
    with pytest.raises(UserError, match=r"expected a tensor \(1, 24, 24\), a projection of 'made'"):
        solve("alphaedit", projections=str(path))


def test_settings_that_would_be_ignored_are_refused():
    import fasttrace as ft
    from fasttrace.editing.tune import tuned_values
    from fasttrace.settings.mass import TuneSettings

    with pytest.raises(UserError, match="null_threshold: expected a value only without projections, got both"):
        METHODS["alphaedit"].settings(projections="p.pt", null_threshold=0.1)
    with pytest.raises(UserError, match="norm_weight: expected a number above 0, got 0"):
        METHODS["alphaedit"].settings(norm_weight=0)
    with pytest.raises(UserError, match="stop: expected a value only with generate, got one without it"):
        ft.EditSettings(stop="line")
    with pytest.raises(UserError, match="rect_share: expected a value only with after rect, got one with after prune"):
        ft.EditSettings(after="prune", rect_share=0.1)
    with pytest.raises(UserError, match="hyperparameter: expected one that edits of one fact depend on, got slack"):
        tuned_values(TuneSettings(method="emmet", hyperparameter="slack", values=[0.0, 1.0]))
