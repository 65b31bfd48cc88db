"""Second moments of all layers: one pass over the text against one pass per layer (the released way).

python -m pytest bench/bench_moments.py
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import fasttrace as ft
from fasttrace.editing.collect import second_moments
from fasttrace.models import Decoder

TOKENS = 1024
SENTENCE = "The harbour of {} was rebuilt in {} by a company from the north, and {} ships a year still call there.\n"


@pytest.fixture(scope="module")
def model() -> Decoder:
    return ft.load_model()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    towns = ("Varna", "Bergen", "Cadiz", "Osaka", "Quebec", "Durban", "Perth")
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(SENTENCE.format(towns[i % 7], 1850 + i, 37 * i) for i in range(80)))
    return path


def together(model: Decoder, text: Path, folder: Path) -> None:
    second_moments(model, text, tokens=TOKENS, cache_dir=folder, batch_rows=1024)


def apart(model: Decoder, text: Path, folder: Path) -> None:
    """Each pass ends at its layer, so this takes half the work of the released code's whole forwards."""
    for layer in range(model.n_layers):
        second_moments(model, text, tokens=TOKENS, layers=[layer], cache_dir=folder / str(layer), batch_rows=1024)


@pytest.mark.parametrize("way", [together, apart], ids=["one pass", "one pass a layer"])
def test_moments(
    benchmark: BenchmarkFixture,
    model: Decoder,
    text: Path,
    tmp_path: Path,
    way: Callable[[Decoder, Path, Path], None],
) -> None:
    rounds = iter(range(100))
    fresh = lambda: ((model, text, tmp_path / str(next(rounds))), {})  # noqa: E731
    impl = "one pass" if way is together else "one pass a layer"
    benchmark.extra_info.update(benchmark="second_moments", case=f"smollm2-135m, {TOKENS} tokens", impl=impl)
    benchmark.pedantic(way, setup=fresh, rounds=3 if way is together else 1)
