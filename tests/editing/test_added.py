"""Methods that are added from outside the package: edited, scored, stored and queried as the shipped ones are."""

from types import SimpleNamespace

import pytest
import torch
from edit_cases import CONTEXTS, FACTS
from small_models import small_model

import fasttrace as ft
from fasttrace.editing.edit import plan_edit
from fasttrace.editing.methods import SOLVES, Solve, add_method
from fasttrace.editing.tune import tuned_values
from fasttrace.errors import UserError
from fasttrace.settings import EditSettings, SpreadSettings, TuneSettings, setting, settings
from fasttrace.settings.methods import METHODS, SOLVED, SPREAD


@settings("powered")
class PoweredSettings(SpreadSettings):
    """ΔW = r (C⁻ᵅ k)ᵀ / (kᵀ C⁻ᵅ k), with α the power."""

    power: float = setting(default=0.5, least=0, most=1, names_run="always", help="Exponent of C's inverse")


class Powered(Solve[PoweredSettings]):
    name, freedom = "powered", "power"
    weight = 0.0

    def slack(self, n):
        return 0.0

    def moved(self, layer, keys, past=None, experts=()):
        values, vectors = torch.linalg.eigh(self.moments.matrix(layer).double())
        return (keys.double() @ vectors * values**-self.settings.power) @ vectors.T


@pytest.fixture(autouse=True)
def as_it_was():
    """No other test sees what is added here."""
    before = dict(METHODS), dict(SOLVES), list(SOLVED), list(SPREAD)
    yield
    for registry, shipped in zip((METHODS, SOLVES), before[:2], strict=True):
        registry.clear()
        registry.update(shipped)
    SOLVED[:], SPREAD[:] = before[2:]


@pytest.fixture
def model(small_tokenizer):
    return small_model("llama", small_tokenizer, torch.float32)


@pytest.fixture
def given(model, corpus, tmp_path):
    moments = ft.second_moments(model, corpus, tokens=3000, sequence_length=32, cache_dir=tmp_path)
    return {"moments": moments, "contexts": CONTEXTS, "essence": 0, "layers": [1]}


def test_an_added_method_edits_as_the_shipped_one_that_it_equals(model, given):
    """With α = 1 it is EMMET without slack, and with α = 0 it is not."""
    add_method(PoweredSettings, windowed=True)(Powered)
    emmet = ft.edit(model, FACTS, method="emmet", slack=0.0, **given)
    one, other = (
        ft.edit(model, FACTS, method="powered", hyperparameters={"power": power}, **given) for power in (1.0, 0.0)
    )
    assert one.scores["rewrite"].to_pylist() == pytest.approx(emmet.scores["rewrite"].to_pylist(), abs=1e-5)
    for mine, theirs, plain in zip(one.edits, emmet.edits, other.edits, strict=True):
        assert mine.updates.keys() == theirs.updates.keys(), "the window"
        for layer, update in theirs.updates.items():
            wanted = update.matrix()
            assert (mine.updates[layer].matrix() - wanted).norm() < 1e-4 * wanted.norm()
            assert (plain.updates[layer].matrix() - wanted).norm() > 1e-2 * wanted.norm()


def test_a_stored_run_names_the_method_and_its_hyperparameters(model, given, tmp_path):
    add_method(PoweredSettings, windowed=False, contexts=4)(Powered)
    store = ft.Store(tmp_path / "s.duckdb")
    own = PoweredSettings(power=0.25, steps=3)
    found = ft.edit(model, FACTS, method="powered", hyperparameters=own, **given)
    assert {len(edit.updates) for edit in found.edits} == {1}, "the layer alone"
    store.add(found)
    store.add(ft.mass_edit(model, FACTS, method="powered", steps=3, layer=1, moments=given["moments"]))
    select = "SELECT method, power, steps, contexts FROM {}_settings"
    [alone] = ft.ask(store, select.format("edit")).to_pylist()
    assert alone == {"method": "powered", "power": 0.25, "steps": 3, "contexts": 2}, "those given, without the bare one"
    store.add(ft.edit(model, FACTS[:1], method="rome", steps=1, **given))
    assert ft.ask(store, "SELECT power FROM edit_settings WHERE method = 'rome'")["power"].to_pylist() == [None]
    [many] = ft.ask(store, select.format("mass")).to_pylist()
    assert many == {"method": "powered", "power": 0.5, "steps": 3, "contexts": 4}, "the default, and the method's"


def test_a_cell_that_is_run_again_replaces_its_method():
    for windowed in (True, False):
        add_method(PoweredSettings, windowed=windowed)(Powered)
        assert METHODS["powered"].windowed == windowed
    assert (SOLVED.count("powered"), SPREAD.count("powered")) == (1, 1)


def test_unknown_methods_and_values_are_refused_by_name():
    with pytest.raises(UserError, match=r"edit: method: expected one of rome, memit, .* got 'powered'"):
        EditSettings(method="powered")
    add_method(PoweredSettings)(Powered)
    assert EditSettings(method="powered", hyperparameters={"power": "0.5"}).hyperparameters.power == 0.5
    with pytest.raises(UserError, match="powered: power: expected a number from 0 to 1, got 2"):
        EditSettings(method="powered", hyperparameters={"power": 2})
    with pytest.raises(UserError, match=r"edit: method: expected one of .*, ft-5, powered, got 'power'"):
        EditSettings(method="power")


def test_workers_which_lack_the_method_are_refused():
    add_method(PoweredSettings)(Powered)
    with pytest.raises(UserError, match=r"edit: method: expected one that workers have.* got the added 'powered'"):
        plan_edit(SimpleNamespace(), FACTS, EditSettings(method="powered"))


@settings("s")
class Taken(SpreadSettings):
    seed: int = setting(default=0, help="A name that every run has")


@settings("s")
class Otherwise(SpreadSettings):
    key_mode: float = setting(default=0.0, help="ROME's is a word")


class Plain(SpreadSettings):
    """Without @settings."""


@pytest.mark.parametrize(
    ("kind", "solve", "words"),
    [
        (PoweredSettings, type("One", (Powered,), {"name": "rome"}), "name of its own, got 'rome'"),
        (PoweredSettings, type("One", (Powered,), {"name": "A b"}), "small letters, digits and hyphens, got 'A b'"),
        (PoweredSettings, type("One", (Powered,), {"name": None}), "One.name to be a text"),
        (PoweredSettings, type("One", (Solve,), {"name": "a", "freedom": "b"}), "One to define moved, slack, weight"),
        (PoweredSettings, PoweredSettings, "a class derived from Solve"),
        (Taken, Powered, "expected names that no run has, got 'seed'"),
        (Otherwise, Powered, "key_mode: expected one of rome, r-rome, as another method has it, got a number"),
        (Plain, Powered, "made by @settings, got the plain class Plain"),
        (EditSettings, Powered, "derived from SpreadSettings"),
    ],
)
def test_what_cannot_be_added_is_refused(kind, solve, words):
    before = dict(METHODS)
    with pytest.raises(UserError, match=words):
        add_method(kind)(solve)
    assert before == METHODS


def test_tuning_an_added_method_tries_what_it_tries_for_memit():
    add_method(PoweredSettings)(Powered)
    tried = [list(tuned_values(TuneSettings(method=method))) for method in ("powered", "memit")]
    assert tried[0] == tried[1]
    assert list(tuned_values(TuneSettings(method="powered", hyperparameter="power", values=[0, 1]))) == [
        ("power", 0.0), ("power", 1.0),
    ]  # fmt: skip
