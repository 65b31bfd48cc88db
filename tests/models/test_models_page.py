"""docs/reference/models.md is what its generator makes, and every model type has a variant held to transformers."""

import re

from models_page import COMMAND, PAGE, page, variants
from transformers import CONFIG_MAPPING

from fasttrace.models.adapter import Decoder
from fasttrace.models.supported import supported


def test_every_model_type_has_a_variant_in_the_tests():
    # The config class of some types is another type's, as gpt-sw3's is GPT-2's.
    own = {name: CONFIG_MAPPING[name].model_type if name in CONFIG_MAPPING else name for name in Decoder.registry}
    assert {name for name, kind in own.items() if kind not in variants()} == set()
    assert set(variants()) <= set(Decoder.registry)


def test_every_adapter_says_what_is_special_about_it():
    for one in supported():
        assert re.match(r"\w+(For|LMHead)\w+", one.classes), one.classes
        assert len(one.about.split()) > 1, f"expected a clause in the docstring of {one.adapter}, got '{one.about}'"
        assert one.about != one.classes


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), f"docs/reference/models.md is out of date: run `{COMMAND}`"
    assert f"drives {len(supported())} model types" in (PAGE.parents[2] / "README.md").read_text(encoding="utf-8")
