"""How a type of settings checks and converts its values."""

from collections.abc import Sequence
from typing import Literal

import attrs
import pytest

from fasttrace.errors import UserError
from fasttrace.settings.base import carried, given_by, replaced, setting, settings, settings_of, text_of
from fasttrace.settings.edit import EditSettings
from fasttrace.settings.mass import MassSettings, TuneSettings
from fasttrace.settings.methods import FineTuneSettings, MemitSettings, RomeSettings
from fasttrace.settings.moments import MomentSettings
from fasttrace.settings.study import FactSettings, StudySettings
from fasttrace.settings.trace import TraceSettings

TYPES = [
    TraceSettings, EditSettings, MassSettings, TuneSettings, MomentSettings, RomeSettings, MemitSettings,
    FineTuneSettings, FactSettings, StudySettings,
]  # fmt: skip


@settings("sample")
class Sample:
    """One setting of every kind."""

    whole: int = setting(default=3, least=1, help="Whole")
    number: float = setting(default=0.5, above=0, help="Number")
    few: int = setting(default=3, least=0, most=7, help="A small number")
    flag: bool = setting(default=False, help="Flag")
    word: Literal["a", "b"] = setting(default="a", help="Word")
    many: Sequence[int] | None = setting(default=None, least=0, help="Many")
    either: float | Literal["3sd"] | None = setting(default=None, above=0, help="Either")
    known: bool | int = setting(default=True, least=1, help="Known")


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("whole", "12", 12),
        ("whole", 4.0, 4),
        ("whole", "123456789012345678", 123456789012345678),
        ("number", "1e-4", 1e-4),
        ("number", 2, 2.0),
        ("flag", "true", True),
        ("flag", "False", False),
        ("word", "b", "b"),
        ("many", "5,10", (5, 10)),
        ("many", [0, 4], (0, 4)),
        ("many", range(2), (0, 1)),
        ("many", "none", None),
        ("either", "0.4", 0.4),
        ("either", "3sd", "3sd"),
        ("either", None, None),
        ("known", "false", False),
        ("known", 24, 24),
    ],
)
def test_a_value_or_its_text_is_converted_to_the_settings_type(name, given, value):
    found = getattr(Sample(**{name: given}), name)
    assert found == value
    assert type(found) is type(value)
    assert getattr(Sample(**{name: text_of(found)}), name) == value


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"whole": 0}, "sample: whole: expected a whole number of at least 1, got 0"),
        ({"whole": 2.5}, "sample: whole: expected a whole number of at least 1, got 2.5"),
        ({"whole": "many"}, "sample: whole: expected a whole number of at least 1, got 'many'"),
        ({"whole": True}, "sample: whole: expected a whole number of at least 1, got True"),
        ({"whole": None}, "sample: whole: expected a whole number of at least 1, got None"),
        ({"number": 0}, "sample: number: expected a number above 0, got 0"),
        ({"number": float("nan")}, "sample: number: expected a number above 0, got nan"),
        ({"number": "inf"}, "sample: number: expected a number above 0, got 'inf'"),
        ({"flag": 1}, "sample: flag: expected true or false, got 1"),
        ({"few": 8}, "sample: few: expected a whole number from 0 to 7, got 8"),
        ({"word": "c"}, "sample: word: expected one of a, b, got 'c'"),
        ({"word": ["a"]}, "sample: word: expected one of a, b, got ['a']"),
        ({"many": []}, "sample: many: expected a list in which each item is a whole number of at least 0, got []"),
        (
            {"many": [1, -1]},
            "sample: many: expected a list in which each item is a whole number of at least 0, got [1, -1]",
        ),
        ({"either": "loud"}, "sample: either: expected a number above 0 or 3sd, got 'loud'"),
        ({"known": 0}, "sample: known: expected true or false or a whole number of at least 1, got 0"),
        ({"hole": 3}, "sample has no setting 'hole'; did you mean 'whole'?"),
        ({"x": 3}, "sample has no setting 'x'; expected one of whole, number, few, flag, word, many, either, known"),
    ],
)
def test_a_bad_value_is_refused_in_one_sentence(given, sentence):
    with pytest.raises(UserError) as caught:
        Sample(**given)
    assert str(caught.value) == sentence


def test_settings_are_frozen_and_compare_by_value():
    one = Sample(whole=3)
    assert one == Sample()
    assert hash(one) == hash(Sample())
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        one.whole = 4


def test_given_values_are_remembered_and_others_stay_at_their_defaults():
    one = Sample(whole=3, word="b")
    assert given_by(one) == {"whole": 3, "word": "b"}
    assert given_by(replaced(one, number=2)) == {"whole": 3, "word": "b", "number": 2.0}
    mass = MassSettings(problem="fact-erasure", layer=3)
    edit = carried(EditSettings, mass, layers=[3])
    assert given_by(edit) == {"problem": "fact-erasure", "layers": (3,)}
    assert edit.method == "rome", "defaults are not carried over"


def test_a_subclass_that_redeclares_a_setting_changes_only_what_it_states():
    assert settings_of(MassSettings)["essence"].help == settings_of(EditSettings)["essence"].help
    assert (MassSettings().essence, EditSettings().essence) == (0, 5)
    assert (RomeSettings().steps, MemitSettings().steps) == (20, 25)
    with pytest.raises(UserError, match="memit: clamp: expected a number above 0"):
        MemitSettings(clamp=0)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_every_default_is_admitted_by_its_setting(kind):
    for name, one in settings_of(kind).items():
        assert one.convert(one.default) == one.default, name
        assert one.help[0].isupper(), name
        assert not one.help.endswith("."), "the full stop is added"


@pytest.mark.parametrize(
    ("kind", "given", "sentence"),
    [
        (TraceSettings, {"verify_top": 3}, "trace: verify_top: expected method attribution, got method denoise"),
        (
            TraceSettings,
            {"method": "attribution", "tokens": "whole-subject"},
            "trace: tokens: expected one token per cell with method attribution, got whole-subject",
        ),
        (MassSettings, {"method": "rome", "at_once": 2}, "mass: at_once: expected 1, as rome edits one fact at a time"),
        (
            EditSettings,
            {"hyperparameters": MemitSettings()},
            "edit: hyperparameters: expected RomeSettings for rome, got MemitSettings",
        ),
        (EditSettings, {"contexts": ["Hi. {}"]}, "edit: contexts: expected '{}' as the first template"),
        (
            TraceSettings,
            {"memory": "lots"},
            "trace: memory: expected a size such as 512MB or 8GB, at most 1024TB, got 'lots'",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(kind, given, sentence):
    with pytest.raises(UserError) as caught:
        kind(**given)
    assert str(caught.value).startswith(sentence)
