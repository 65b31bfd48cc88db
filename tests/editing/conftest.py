"""Fixtures of the tests of editing."""

import numpy as np
import pytest
from edit_cases import FACTS


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    rng = np.random.default_rng(0)
    words = " ".join([FACTS[0].text, FACTS[1].text, "capital France Rome New York and"])
    path.write_text(" ".join(rng.choice(words.split(" "), 4000)))
    return path
