"""docs/models.md is what its generator makes now, and every model type has a variant that is held to transformers."""

from models_page import COMMAND, PAGE, page, variants

from fasttrace.models.adapter import Decoder
from fasttrace.models.supported import supported


def test_every_model_type_has_a_variant_in_the_tests():
    assert set(variants()) == set(Decoder.registry)


def test_every_adapter_says_what_is_special_about_it():
    for one in supported():
        assert one.classes.split(", ")[0].replace(" ", "").isalnum(), one.classes
        assert len(one.about) > 20, f"expected a clause in the docstring of {one.adapter}, got '{one.about}'"
        assert one.about != one.classes


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), f"docs/models.md is out of date: run `{COMMAND}`"
