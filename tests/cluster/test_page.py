"""docs/how-to/cluster.md says what is so: its scripts do what they say.

srun, sbatch and scontrol are replaced by programs that run their command here. Two nodes are two Ray nodes of this
machine.
"""

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import fasttrace as ft

DOCS = Path(__file__).parents[2] / "docs" / "how-to"
PAGE = (DOCS / "cluster.md").read_text(encoding="utf-8")
SCRIPTS = DOCS / "cluster"
TRACE = [
    "--keep",
    "all",
    "--windows",
    "3",
    "--samples",
    "2",
    "--sigma",
    "0.4",
    "--memory",
    "3MB",
]  # a wave for each fact
CELLS = "SELECT * FROM trace_cells ORDER BY fact_id, window_size, token_index, layer"
STUDY = """
model = "model"

[facts]
file = "facts.jsonl"
known = false

[[trace]]
windows = [3]
samples = 2
sigma = 0.4
"""
SHIMS = {
    "fasttrace": f'exec "{sys.executable}" -c "from fasttrace.cli import main; main()" "$@"',
    "python": f'exec "{sys.executable}" "$@"',
    "ray": f'exec "{Path(sys.executable).parent}/ray" "$@"',
    "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',
    "scontrol": 'printf "%s\\n" ${@: -1}',
}


@pytest.fixture
def here(workplace, tmp_path):
    """A folder with a small model and facts, and a function that runs a command there as a job's script."""
    for file in workplace.iterdir():
        if file.name != "cache":
            (tmp_path / file.name).symlink_to(file)
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in SHIMS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)

    def call(*words, **environment):
        own = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "XDG_CACHE_HOME": str(workplace / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.run(
            list(map(str, words)),
            cwd=tmp_path,
            env={**os.environ, **own, **environment},
            capture_output=True,
            text=True,
            timeout=500,
        )

    call.folder = tmp_path
    return call


@pytest.fixture
def alone(here):
    """The cells of a sweep by one process."""
    words = ["fasttrace", "trace", "--facts", "facts.jsonl", "--model", "model", *TRACE, "--store", "alone.duckdb"]
    done = here(*words)
    assert done.returncode == 0, done.stderr
    return ft.Store(here.folder / "alone.duckdb").query(CELLS)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_what_is_linked_exists():
    links = re.findall(r"\]\((cluster/[\w.-]+)\)", PAGE)
    assert sorted(links) == sorted(f"cluster/{file.name}" for file in SCRIPTS.iterdir())
    named = re.findall(r"docs/how-to/(cluster/[\w.-]+)", PAGE + "".join(file.read_text() for file in SCRIPTS.iterdir()))
    assert set(named) == set(links)


@pytest.mark.parametrize("script", ["slurm-array.sh", "slurm-ray.sh"])
def test_scripts_are_bash(script):
    assert subprocess.run(["bash", "-n", SCRIPTS / script]).returncode == 0
    assert os.access(SCRIPTS / script, os.X_OK)


@pytest.mark.slow
def test_an_array_of_shares_is_the_whole(here, alone):
    asked = {"FACTS": "facts.jsonl", "MODEL": "model", "OPTIONS": " ".join(TRACE)}
    for n in (1, 2):
        done = here(
            SCRIPTS / "slurm-array.sh",
            **asked,
            SLURM_ARRAY_TASK_ID=str(n),
            SLURM_ARRAY_TASK_COUNT="2",
            SLURM_CPUS_PER_TASK="1",
        )
        assert done.returncode == 0, done.stderr
    parts = [ft.Store(here.folder / "stores" / f"{n}.duckdb").query(CELLS) for n in (1, 2)]
    assert all(0 < len(part) < len(alone) for part in parts)
    done = here(SCRIPTS / "slurm-array.sh", "merge", SHARES="2")
    assert done.returncode == 0, done.stderr
    assert ft.Store(here.folder / "study.duckdb").query(CELLS).equals(alone)


@pytest.mark.slow
def test_a_job_of_two_nodes_is_a_ray_cluster(here, alone):
    pytest.importorskip("ray")
    words = ["trace", "--facts", "facts.jsonl", "--model", "model", *TRACE, "--store", "ray.duckdb"]
    done = here(
        SCRIPTS / "slurm-ray.sh",
        *words,
        SLURM_JOB_NODELIST="one two",
        SLURMD_NODENAME="one",
        SLURM_JOB_NUM_NODES="2",
        SLURM_CPUS_ON_NODE="1",
        SECRETS=str(here.folder),
        RAY_PORT=str(free_port()),
        RAY_OPTIONS="--num-cpus=1",
    )
    assert done.returncode == 0, done.stderr
    assert ft.Store(here.folder / "ray.duckdb").query(CELLS).equals(alone)
    assert list(here.folder.glob("fasttrace-ray-*")) == [], "the token is removed with the job"


@pytest.mark.slow
def test_the_entrypoint_of_the_kubernetes_job(here, alone):
    """It is run with a small study and folder in place of its own."""
    pytest.importorskip("ray")
    job = yaml.safe_load((SCRIPTS / "kuberay-job.yaml").read_text())
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:3] == ["fasttrace", "study", "gpt-j"]
    (here.folder / "small.toml").write_text(STUDY)
    replaced = {"gpt-j": "small.toml", "/study/gpt-j": "out"}
    done = here(*(replaced.get(word, word) for word in words))
    assert done.returncode == 0, done.stderr
    assert len(ft.Store(here.folder / "out" / "study.duckdb").query(CELLS)) > 0


def test_the_kubernetes_job_is_whole():
    """The parts that KubeRay requires are there, and head and workers have one image, volume and environment."""
    job = yaml.safe_load((SCRIPTS / "kuberay-job.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    specs = [group["template"]["spec"] for group in groups]
    for part in ("image", "env", "volumeMounts"):
        [first, *others] = [spec["containers"][0][part] for spec in specs]
        assert others == [first]
    assert all(spec["volumes"] == specs[0]["volumes"] for spec in specs)
    mounted = [mount["mountPath"] for mount in specs[0]["containers"][0]["volumeMounts"]]
    words = shlex.split(job["spec"]["entrypoint"])
    assert any(words[words.index("--out") + 1].startswith(path) for path in mounted)
