"""How well estimates rank exact cells: SQL against scipy."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from made_results import made_trace
from scipy import stats

from fasttrace.analysis.relation import relation
from fasttrace.store import Store

IDS = ["f0", "f1"]


@pytest.fixture
def screened(tmp_path):
    """(a store with exact grids of 2 facts at 2 windows and noisy estimates of them, some tied; the exact cells)."""
    exact = made_trace(IDS, windows=(3, 5), layers=12, tokens=6)
    random = np.random.default_rng(4)
    p = exact.cells["p_restored"].to_numpy()
    guess = np.round(np.clip(p + random.normal(0, 0.1, len(p)), 0, 1), 2)
    settings = json.dumps({"module": "mlp", "method": "attribution"})
    estimates = made_trace(IDS, run_id="a0", windows=(3, 5), layers=12, tokens=6, settings=settings)
    column = estimates.cells.column_names.index
    cells = estimates.cells.set_column(column("p_restored"), "p_restored", pa.array(guess))
    verified = np.arange(len(p)) % 7 == 0  # these cells have the exact value and, beside it, the estimate
    cells = cells.set_column(column("p_restored"), "p_restored", pa.array(np.where(verified, p, guess)))
    cells = cells.set_column(column("p_screened"), "p_screened", pa.array(guess, mask=~verified))
    estimates.cells = cells.set_column(column("approximate"), "approximate", pa.array(~verified))
    store = Store(tmp_path / "study.duckdb")
    store.add(exact)
    store.add(estimates)
    return store, exact.cells.append_column("guess", pa.array(guess))


def test_screening_is_spearman_and_the_share_of_the_top(screened):
    store, cells = screened
    rows = relation(store, "screening").to_pylist()
    assert [(row["fact_id"], row["window_size"]) for row in rows] == [("f0", 3), ("f1", 3), ("f0", 5), ("f1", 5)]
    for row in rows:
        mine = cells.filter(
            pc.and_(pc.equal(cells["fact_id"], row["fact_id"]), pc.equal(cells["window_size"], row["window_size"]))
        )
        p, guess = mine["p_restored"].to_numpy(), mine["guess"].to_numpy()
        assert row["cells"] == len(p) == 72
        assert row["spearman"] == pytest.approx(stats.spearmanr(p, guess).statistic, abs=1e-12)
        top, fortieth = guess[np.argsort(-p)[:10]], np.sort(guess)[-40]
        sure, maybe = (top > fortieth).mean(), (top >= fortieth).mean()
        assert sure <= row["top_10_in_top_40"] <= maybe, "ties at rank 40 may count either way"
        assert row["top_10_in_top_40"] > 0.5


def test_a_store_without_screened_traces_has_no_rows(study):
    assert relation(study, "screening").num_rows == 0
