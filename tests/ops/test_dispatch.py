"""choose(): "auto" logs its choice, and an implementation asked for by name is used or refused."""

import logging
import os
import subprocess
import sys

import pytest
import torch

from fasttrace.errors import UserError
from fasttrace.ops import dispatch
from fasttrace.ops.dispatch import choose

CPU = torch.zeros(1)
UNBUILT = {"reference": None, "native": "the extension is not built"}
META = torch.zeros(1, device="meta")


@pytest.fixture(autouse=True)
def _forget_announcements(monkeypatch):
    monkeypatch.setattr(dispatch, "_announced", set())


def test_auto_on_cpu_prefers_native_over_reference():
    assert choose("op", "auto", ("reference", "triton", "native"), CPU) == "native"
    assert choose("op", "auto", ("reference", "triton"), CPU) == "reference"


def test_auto_skips_an_implementation_that_cannot_run():
    assert choose("op", "auto", UNBUILT, CPU) == "reference"


def test_only_auto_skips_an_implementation_that_is_not_worthwhile():
    asked = []

    def worthwhile(name):
        asked.append(name)
        return name != "native"

    assert choose("op", "auto", ("reference", "native"), CPU, worthwhile=worthwhile) == "reference"
    assert asked == ["native", "reference"]
    assert choose("op", "auto", UNBUILT, CPU, worthwhile=worthwhile) == "reference"
    assert choose("op", "native", ("reference", "native"), CPU, worthwhile=worthwhile) == "native"
    assert asked == ["native", "reference", "reference"], "only candidates of auto that can run are measured"


def test_auto_logs_its_choice_once(caplog):
    with caplog.at_level(logging.INFO, logger="fasttrace.ops"):
        for _ in range(3):
            choose("some_op", "auto", ("reference",), CPU)
    assert [r.getMessage() for r in caplog.records] == ["some_op on cpu: impl='auto' takes 'reference'"]


def test_none_tensors_are_ignored():
    assert choose("op", "reference", ("reference",), CPU, None) == "reference"


@pytest.mark.parametrize(
    ("impl", "available", "tensors", "words"),
    [
        pytest.param("fast", ("reference",), (CPU,), "one of auto, .*, got 'fast'", id="unknown-name"),
        pytest.param("native", ("reference",), (CPU,), "no such .* here; possible: reference", id="absent"),
        pytest.param("native", UNBUILT, (CPU,), "the extension is not built", id="reason"),
        pytest.param("auto", ("reference",), (CPU, META), r"2 devices \(cpu, meta\)", id="two-devices"),
        pytest.param("auto", (), (CPU,), "no implementation can run on cpu", id="nothing"),
    ],
)
def test_refusals_say_what_and_why(impl, available, tensors, words):
    with pytest.raises(UserError, match=words):
        choose("op", impl, available, *tensors)


def _in_fresh_python(interpret: str) -> str:
    code = (
        "import torch\nfrom fasttrace.ops.dispatch import choose\n"
        "try: print(choose('op', 'triton', ('reference', 'triton'), torch.zeros(1)))\n"
        "except Exception as e: print(type(e).__name__, e)\n"
        "print(choose('op', 'auto', ('reference', 'triton'), torch.zeros(1)))"
    )
    env = {**os.environ, "TRITON_INTERPRET": interpret}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return done.stdout


def test_triton_on_cpu_only_in_the_interpreter():
    pytest.importorskip("triton")
    refused, auto = _in_fresh_python("0").splitlines()
    assert refused.startswith("UserError op: impl='triton' was asked for, but Triton needs CUDA tensors")
    assert auto == "reference"
    assert _in_fresh_python("1").splitlines() == ["triton", "reference"]


def test_auto_skips_triton_if_it_cannot_be_imported(monkeypatch):
    monkeypatch.setattr(dispatch, "triton_reason", lambda: "Triton cannot be imported here (gone)")
    with pytest.raises(UserError, match="gone"):
        choose("op", "triton", ("reference", "triton"), CPU)
    assert choose("op", "auto", ("reference", "triton"), CPU) == "reference"
