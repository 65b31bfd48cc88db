"""`fasttrace regress` on the command line: output formats, counts of rows, and refusals."""

import csv
import io
import json

import pytest

STORE = ("--store", "s.duckdb")


def test_the_summary_and_its_counts_of_rows(run):
    done = run("regress", "rewrite ~ C(layer) * effect", *STORE, "--cluster", "fact_id")
    assert "Least squares: n = 60, R² " in done.stdout
    assert "Errors: clustered by fact_id" in done.stdout
    assert "Rows: 60 of 60 selected, of 15 facts" in done.stdout
    assert done.stderr == ""
    mixed = run("regress", "effect", *STORE, "--mixed").stdout
    assert "Mixed model by REML: n = 60, 15 groups, " in mixed
    assert mixed == run("regress", "effect", *STORE, "--groups", "fact_id").stdout
    few = run("regress", "effect", *STORE, "--where", "layer = 1", "--where", "fact_id < 'f13'")
    assert "Rows: 5 of 5 selected" in few.stdout
    assert few.stderr == ""


def test_formats_of_the_coefficients(place, run):
    words = ("regress", "both", *STORE, "--robust", "--score", "overall")
    whole = json.loads(run(*words, "--json").stdout)
    assert whole == json.loads(run(*words, "--format", "json").stdout)
    assert (whole["formula"], whole["errors"], whole["n"]) == ("overall ~ C(layer) * effect", "HC3", 60)
    assert whole["dropped"] == whole["notes"] == []
    assert 0 < whole["r2"] < 1
    done = run(*words, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [{"term": row.pop("term")} | {name: float(value) for name, value in row.items()} for row in rows] == [
        {name: pytest.approx(value, rel=1e-15) if name != "term" else value for name, value in row.items()}
        for row in whole["coefficients"]
    ]
    assert "Rows: 60 of 60 selected" in done.stderr
    text = run(*words, "--format", "markdown").stdout
    assert text.startswith("**overall ~ C(layer) * effect**\n\n| term | estimate |")
    assert "C(layer)[T.1] & " in run(*words, "--format", "latex").stdout
    done = run(*words, "--format", "csv", "--out", "b.csv")
    assert done.stdout == ""
    assert list(csv.DictReader((place / "b.csv").open())) == list(
        csv.DictReader(io.StringIO(run(*words, "--format", "csv").stdout))
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("rewrite ~ efect", *STORE), "expected a column of traced_edits, got 'efect' (did you mean 'effect'"),
        (("rewrite ~ (", *STORE), "expected a formula such as 'rewrite ~ C(layer) * effect'"),
        (("both", *STORE, "--where", "layer > 9"), "expected edits for which layer > 9, got none"),
        (("both", *STORE, "--where", "layr > 9"), 'Referenced column "layr" not found'),
        (("both", *STORE, "--score", "magnitude"), "expected magnitude to vary"),
        (("rewrite ~ C(layer) + layer", *STORE), "expected independent terms, got layer"),
        (("both", *STORE, "--robust", "--mixed"), "expected one of robust, cluster and groups, got robust and groups"),
        (("both", *STORE, "--mixed", "--groups", "layer"), "expected --mixed or --groups, got --mixed"),
        (("both", *STORE, "--json", "--format", "csv"), "expected one format, got --json and --format csv"),
        (("both", *STORE, "--score", ""), "expected the name of a score, got ''"),
        (("both", "--store", "none.duckdb"), "there is no store at none.duckdb"),
        (("both",), "expected --store FILE"),
        ((), "Missing argument 'FORMULA'"),
        (("both", *STORE, "--out", "s.duckdb"), "'s.duckdb' cannot be written: it is a DuckDB file"),
    ],
)
def test_a_bad_command_gives_one_sentence_and_exit_code_2(place, run, words, sentence):
    done = run("regress", *words, code=2)
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert [path.name for path in place.iterdir()] == ["s.duckdb"]
