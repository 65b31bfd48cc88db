"""How a plan is cut: nothing is lost or computed twice, and by the planned costs all workers end at about one time.

Costs are those of the planner for CounterFact's development facts, or the built-in ones, on SmolLM2-135M, repeated to
22,000. No pass runs.
"""

from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulate import simulated

import fasttrace as ft
from fasttrace.cluster.pieces import EACH, WAVES, Piece, Unit, pieces, share, waves
from fasttrace.editing import prepare_edit
from fasttrace.tracing import prepare_trace

COUNTERFACT = Path(__file__).parents[2] / ".." / "shared" / "data" / "counterfact_dev.json"
FACTS, TURNS = 22_000, 10
WORKERS = 64
PLANS = {
    "traced": {"keep": "all"},
    "traced if known": {},
    "edited": {"method": "ft-1", "layers": [6, 12]},
}


@pytest.fixture(scope="module")
def facts():
    """Real facts, each with a fact_id of its own."""
    some = ft.load_facts(COUNTERFACT if COUNTERFACT.exists() else "builtin")
    return [replace(fact, fact_id=str(n)) for n, fact in zip(range(FACTS // TURNS), cycle(some), strict=False)]


@pytest.fixture(scope="module", params=PLANS)
def units(request, smollm2, facts):
    asked = PLANS[request.param]
    plan = (prepare_edit if "method" in asked else prepare_trace)(smollm2, facts, **asked)
    some = plan.units()
    return [unit._replace(key=(turn, unit.key)) for turn in range(TURNS) for unit in some]


def costs_of(work):
    return [piece.cost for piece in work]


def test_64_workers_are_idle_for_less_than_a_twentieth(units):
    assert len({(turn, key if isinstance(key, str) else key[0]) for (turn, key), _, _ in units}) == FACTS
    work = pieces(units, WORKERS)
    assert simulated(costs_of(work), [1.0] * WORKERS).idle < 0.05
    # A machine may be slower than another, and a fact that the model does not know costs nothing.
    rng = np.random.default_rng(0)
    assert simulated(costs_of(work), rng.uniform(0.7, 1.0, WORKERS)).idle < 0.05
    known = {unit.key for unit in units if rng.random() < 0.3}
    some = pieces([unit if unit.key in known else unit._replace(cost=0.0) for unit in units], WORKERS)
    assert simulated(costs_of(some), [1.0] * WORKERS).idle < 0.05


def test_a_driver_of_5_ms_a_piece_keeps_64_workers_busy(units):
    """The whole takes ten minutes here, which is little for so many facts."""
    work = pieces(units, WORKERS)
    speed = sum(costs_of(work)) / WORKERS / 600
    assert simulated(costs_of(work), [speed] * WORKERS, driver=0.005).idle < 0.05


def test_shares_of_real_facts_cost_about_the_same(units):
    cost = {unit.key: unit.cost for unit in units}
    for of in (2, 3, 8, 16):
        loads = [sum(cost[key] for key in share(units, n, of)) for n in range(1, of + 1)]
        assert max(loads) < 1.1 * sum(loads) / of


def test_a_few_very_large_facts_go_first():
    """The largest of these 22,000 costs more than three hundred times the median."""
    drawn = np.random.default_rng(0).pareto(1.5, FACTS) + 1
    units = [Unit(n, cost, True) for n, cost in enumerate(drawn)]
    assert max(drawn) > 300 * np.median(drawn)
    work = pieces(units, WORKERS)
    assert simulated(costs_of(work), [1.0] * WORKERS).idle < 0.05


def test_a_simulation_by_hand():
    """The driver hands out two pieces at once, one second each, and each worker begins when it has its own."""
    assert simulated([4, 2, 2], [1.0, 1.0]) == (4.0, 0.0)
    assert simulated([4, 2, 2], [1.0, 2.0]) == (4.0, pytest.approx(1 - 6 / 8))
    assert simulated([4, 2], [1.0, 1.0], driver=1.0) == (5.0, pytest.approx(1 - 6 / 10))
    assert simulated([4, 2], [1.0, 1.0], starts=[3.0, 0.0]) == (5.0, pytest.approx(1 - 6 / 10))
    assert simulated([], [1.0]) == (0.0, 0.0)


COSTS = st.one_of(st.just(0.0), st.floats(1e-3, 1e3), st.floats(1e6, 1e9))
DRAWN = st.lists(st.tuples(COSTS, st.booleans()), max_size=120).map(
    lambda drawn: [Unit(("fact", n), cost, begins) for n, (cost, begins) in enumerate(drawn)]
)


@given(DRAWN, st.integers(1, 9), st.data())
def test_every_unit_that_is_left_is_in_one_piece(units, workers, data):
    done = set(data.draw(st.lists(st.sampled_from([u.key for u in units]), unique=True))) if units else set()
    work = pieces(units, workers, done)
    keys = [unit.key for piece in work for unit in piece.units]
    assert sorted(keys) == sorted(unit.key for unit in units if unit.key not in done)
    assert costs_of(work) == sorted(costs_of(work), reverse=True)


@given(DRAWN, st.integers(1, 9))
def test_a_piece_has_whole_waves_that_follow_each_other(units, workers):
    number = {unit.key: n for n, wave in enumerate(waves(units)) for unit in wave.units}
    size = {n: len(wave.units) for n, wave in enumerate(waves(units))}
    most = sum(unit.cost for unit in units) / (EACH * workers)
    for piece in pieces(units, workers):
        inside = sorted({number[unit.key] for unit in piece.units})
        assert inside == list(range(inside[0], inside[0] + len(inside)))
        assert len(piece.units) == sum(size[n] for n in inside)
        assert len(inside) <= WAVES
        assert len(inside) == 1 or piece.cost <= most * (1 + 1e-9)


def test_what_is_left_of_a_wave_is_a_piece_of_its_own():
    """A piece with it and its neighbours would be packed into other waves."""
    units = [Unit(n, 1.0, n % 2 == 0) for n in range(1000)]
    alone = next(piece for piece in pieces(units, 1, done={501}) if 500 in piece.keys)
    assert alone.keys == {500}
    apart = [piece.keys for piece in pieces(units, 1, done={500, 501})]
    assert not any(keys & {498, 499} and keys & {502, 503} for keys in apart)


@given(DRAWN.filter(bool))
def test_halves_have_every_unit_in_order(units):
    halves = Piece(tuple(units)).halves()
    assert [unit for half in halves for unit in half.units] == units
    assert all(half.units for half in halves)
    assert len(halves) == min(2, len(units))


@given(DRAWN, st.integers(1, 9))
def test_shares_are_disjoint_and_together_the_whole(units, of):
    shares = [share(units, n, of) for n in range(1, of + 1)]
    assert sum(map(len, shares)) == len(units)
    assert frozenset().union(*shares) == {unit.key for unit in units}
    assert shares == [share(list(units), n, of) for n in range(1, of + 1)]


def test_shares_have_whole_waves_where_there_are_many():
    units = [Unit(n, 1.0, n % 4 == 0) for n in range(4 * 1000)]
    for n in (1, 2, 3):
        mine = share(units, n, 3)
        assert {4 * (key // 4) + i for key in mine for i in range(4)} == mine


def test_a_share_without_work_says_so(caplog):
    units = [Unit(n, 1.0, n == 0) for n in range(8)]
    assert share(units, 1, 2) == set(range(8))
    assert not caplog.messages
    assert share(units, 2, 2) == set()
    assert caplog.messages == ["share 2 of 2 has nothing to compute: the work has only 1 part that can be shared"]
