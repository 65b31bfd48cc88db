"""The same command again asks the judge about the texts that it failed to judge, and computes nothing else."""

import pytest

from fasttrace.store import Store

STUDY = """
model = "model"
memory = "4MB"

[facts]
file = "facts.jsonl"
known = false

[[edit]]
methods = ["ft-1"]
layers = [1]
essence = 0
generate = 2
judge_url = "{url}"
judge_model = "m"
set = {{ steps = 1 }}
"""


@pytest.mark.parametrize("verb", ["edit", "mass", "study"])
def test_the_same_command_asks_again_where_a_judge_failed(verb, grader, workplace, tmp_path, monkeypatch, command):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url, place = f"http://127.0.0.1:{grader.server_port}/v1", tmp_path / "judged.duckdb"
    (tmp_path / "judged.toml").write_text(STUDY.format(url=url))
    layer = {"edit": ("--layers", "1", "--essence", "0"), "mass": ("--layer", "1")}
    common = ("--model", "model", "--facts", "facts.jsonl", "--method", "ft-1", "--set", "steps=1", "--generate", "2")
    words = (verb, *common, *layer.get(verb, ()), "--judge-url", url, "--judge-model", "m")
    if verb == "study":
        words = ("study", str(tmp_path / "judged.toml"), "--out", str(tmp_path / "out"))
    words = (*words, "--store", str(place))
    command(*words)
    prompts = "FROM mass_prompts" if verb == "mass" else "FROM edit_prompts"
    store = Store(place)
    before = store.query(f"{prompts} ORDER BY ALL").to_pylist()
    failed = {(row["prompt"], *row["answers"], row["generated_after"]) for row in before if row["judge_error"]}
    assert any("Paris" in one for one in failed)
    grader.mended, asked = True, len(grader.seen)
    command(*words)
    assert len(grader.seen) - asked == len(failed)
    for row in store.query(f"{prompts} ORDER BY ALL").to_pylist():
        judged = row["answers"] in (["Paris"], ["Rome"])
        assert (row["judged_after"], row["judge_error"] is None) == ((True, True) if judged else (None, False))
    assert len(store.query(prompts)) == len(before)
