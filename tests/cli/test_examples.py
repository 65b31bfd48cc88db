"""The examples of the help, one after another in an empty folder, with the real model."""

import shlex

import pytest

from fasttrace.cli.verbs import FIRST, VERBS

# serve runs until Ctrl-C, and demo for minutes: tests/store/test_server.py and tests/test_study.py run them.
ENDLESS = {"serve", "demo"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_examples_work_one_after_another(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    assert "Eiffel" in command(*shlex.split(FIRST)).stdout
    for verb in sorted(VERBS, key=lambda name: name in ("sql", "tables")):  # which read what the others have made
        if verb not in ENDLESS:
            command(*shlex.split(VERBS[verb].example), stdin="The Eiffel Tower is in the city of\n")
    made = {path.name for path in tmp_path.iterdir()}
    assert {"study.duckdb", "many.safetensors", "edited", "figures", "report.html", "all.duckdb"} <= made
