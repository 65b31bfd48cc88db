"""bench/device.sh without running its parts. `.ci/run` runs every part with small sizes."""

import json
import re
import runpy
import subprocess
from pathlib import Path

import pytest
from device_ops import SHAPES, SMALL, table

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "device.sh"
SECONDS = 540  # limit of a command, which may take ten minutes


def device(*words):
    return subprocess.run(["bash", SCRIPT, *words], capture_output=True, text=True)


def budget(*parts):
    """Part → its time limit in seconds."""
    done = device("--budget", *parts)
    assert done.returncode == 0, done.stderr
    return {name: int(seconds) for name, seconds in re.findall(r"^(\w+): at most (\d+) s$", done.stdout, re.M)}


def test_the_two_commands_of_its_header_run_every_part_once_and_end_in_time():
    commands = re.findall(r"^#   bash bench/device\.sh (.+)$", SCRIPT.read_text(), re.M)
    assert len(commands) == 2
    for command in commands:
        limits = budget(*command.split())
        assert list(limits) == [*command.split(), "all"]
        assert sum(limits.values()) - limits["all"] == limits["all"] <= SECONDS
    every = budget()
    assert [*" ".join(commands).split(), "all"] == list(every)
    told = re.findall(r"^#   (\w+)  +\S", SCRIPT.read_text(), re.M)
    assert [*told, "all"] == list(every)


def test_an_unknown_part_is_refused():
    done = device("tests", "polish")
    assert done.returncode == 2
    assert done.stdout.startswith("unknown part 'polish': expected some of unbuilt build tests")


def test_every_op_has_a_small_load():
    assert list(SMALL) == list(SHAPES)


def row(impl, seconds, **more):
    given = {"benchmark": "rank_one_", "case": "d 4, m 8, bfloat16", "impl": impl, "seconds": seconds}
    return {**given, "relative_difference": 1e-3, "fraction_of_ceiling": 0.5, **more}


def test_the_table_of_results(tmp_path, capsys):
    """A case with rows in several files, a row that failed, a sweep's row, and an op without fasttrace's own row."""
    swept = {"benchmark": "sweep", "case": "gptj bfloat16", "impl": "fasttrace", "seconds_a_fact": 0.125}
    edited = {"benchmark": "editing: rome", "case": "gptj float32, batch of 1", "seconds": 0.5, "edits/s": 2.0}
    wider = {"impl": "released in float64", "fasttrace_off": 3e-5, "released_off": 6e-5}
    files = {
        "a-compiled": [row("torch.compile", 3e-6), {**row("torch.compile", 0), "benchmark": "gelu_tanh_"}],
        "b-gptj": [{**swept, "fraction_of_peak": 0.5}],
        "c-ops": [row("auto", 2e-6), row("reference", 8e-6), row("torch addr_", 1e-6, relative_difference=None)],
        "d-ops": [{"benchmark": "rank_one_", "case": "d 4, m 8, bfloat16", "impl": "torch.compile", "error": "no"}],
        "e-edits": [
            {**edited, "impl": "fasttrace", "bytes": 1.5e9},
            {**edited, "impl": "released", "edits/s": 0.25},
            {**wider, "benchmark": edited["benchmark"], "case": edited["case"]},
        ],
    }
    for name, rows in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": rows}))
    table(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"rank_one_ +bfloat16 +2 µs +50 % of ceiling +1\.50 times torch\.compile +1e-03", lines[0])
    assert lines[1] == "gelu_tanh_, d 4, m 8, bfloat16: fasttrace's own row is missing"
    assert lines[2] == "gptj bfloat16: 0.125 s a fact, 50 % of GEMM peak"
    assert lines[3] == (
        "editing: rome, gptj float32, batch of 1: 0.50 s, 2 edits/s, 1.5 GB, released 0.25 edits/s, "
        "3e-05 from released in float64, they 6e-05"
    )


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("", ["80", "90", "100", "120"]),
        ("9.0", ["90"]),
        ("8.0;9.0a+PTX", ["80", "90a+PTX"]),
        ("9.0 12.0 ", ["90", "120"]),
    ],
)
def test_architectures_are_read_as_torch_reads_them(given, wanted, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", given)
    build = runpy.run_path(str(ROOT / "csrc" / "build_ext.py"))
    assert build["cuda_architectures"]() == wanted
    flags = [word for word in build["nvcc_command"]("a.cu", "a.o", wanted) if word.startswith("-gencode")]
    assert len(flags) == len(wanted)
    if given.endswith("PTX"):
        assert flags[1] == "-gencode=arch=compute_90a,code=[sm_90a,compute_90a]"


def test_an_architecture_by_name_is_refused(monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(SystemExit, match=r"expected architectures such as 9\.0 or .*, got 'Hopper'"):
        runpy.run_path(str(ROOT / "csrc" / "build_ext.py"))["cuda_architectures"]()
