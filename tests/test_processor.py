"""Names of processors: the generation and the instruction set for matrix products, as /proc/cpuinfo has them."""

import io

import pytest

from fasttrace.benchmarks import result
from fasttrace.processor import this_processor

EPYC, XEON = "AMD EPYC", "Intel(R) Xeon(R) Processor @ 2.70GHz"
AMD, INTEL = "AuthenticAMD", "GenuineIntel"
WIDE = "avx2 avx512f"
CASES = [
    (AMD, EPYC, 23, 1, "avx2", "cpu-amd-epyc-zen-avx2"),
    (AMD, EPYC, 23, 49, "avx2", "cpu-amd-epyc-zen2-avx2"),
    (AMD, EPYC, 25, 1, "avx2", "cpu-amd-epyc-zen3-avx2"),
    (AMD, "AMD EPYC 7763 64-Core Processor", 25, 1, "avx2", "cpu-amd-epyc-7763-zen3-avx2"),
    (AMD, EPYC, 25, 17, f"{WIDE} avx512_bf16", "cpu-amd-epyc-zen4-avx512-bf16"),
    (AMD, EPYC, 25, 160, f"{WIDE} avx512_bf16", "cpu-amd-epyc-zen4-avx512-bf16"),
    (AMD, EPYC, 26, 2, f"{WIDE} avx512_bf16", "cpu-amd-epyc-zen5-avx512-bf16"),
    (INTEL, XEON, 6, 85, WIDE, "cpu-intel-xeon-skylake-sp-avx512"),
    (INTEL, XEON, 6, 85, f"{WIDE} avx512_vnni", "cpu-intel-xeon-cascade-lake-avx512"),
    (INTEL, XEON, 6, 85, f"{WIDE} avx512_vnni avx512_bf16", "cpu-intel-xeon-cooper-lake-avx512-bf16"),
    (INTEL, XEON, 6, 106, f"{WIDE} avx512_vnni", "cpu-intel-xeon-ice-lake-avx512"),
    (INTEL, XEON, 6, 143, f"{WIDE} avx512_bf16 amx_tile", "cpu-intel-xeon-sapphire-rapids-amx"),
    (INTEL, XEON, 6, 143, f"{WIDE} avx512_bf16", "cpu-intel-xeon-sapphire-rapids-avx512-bf16"),
    (INTEL, XEON, 6, 207, f"{WIDE} amx_tile", "cpu-intel-xeon-emerald-rapids-amx"),
    (INTEL, XEON, 6, 173, f"{WIDE} amx_tile", "cpu-intel-xeon-granite-rapids-amx"),
    (INTEL, XEON, 6, 200, WIDE, "cpu-intel-xeon-family-6-model-200-avx512"),
    (AMD, EPYC, 25, 255, "sse2", "cpu-amd-epyc-family-25-model-255-none"),
]


def described(monkeypatch, text):
    monkeypatch.setattr("builtins.open", lambda *_, **__: io.StringIO(text))


@pytest.mark.parametrize(("vendor", "name", "family", "model", "flags", "folder"), CASES)
def test_a_folder_of_results_tells_generation_and_instruction_set(
    monkeypatch, vendor, name, family, model, flags, folder
):
    core = (
        f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\n"
        f"model name\t: {name}\nflags\t\t: fpu {flags} fma\nbugs\t\t:\n\n"
    )
    described(monkeypatch, core * 2)
    assert result.machine("cpu") == folder
    assert result.processor("cpu").startswith(f"{name} (")


def test_another_kind_of_processor_has_no_name(monkeypatch):
    described(monkeypatch, "processor : 0\nBogoMIPS : 50.00\nCPU implementer : 0x41\n")
    assert this_processor() is None
    assert (result.machine("cpu"), result.processor("cpu")) == ("cpu", "cpu")
