"""The table of verbs, by the heading that they have in the help."""

from typing import NamedTuple


class Row(NamedTuple):
    """A verb: its module, what it imports before it runs, its line in the help of all, and a command that works.

    The examples work one after another in an empty folder.
    """

    module: str
    needs: str
    line: str
    example: str


# The command for somebody who has none yet: it needs no file, and prints a picture.
FIRST = "trace --prompt 'The {} is in the city of' --subject 'Eiffel Tower' --target Paris"

# heading → verbs, in the order in which a study needs them
GROUPS = {
    "Look": {
        "facts": Row("facts", "fasttrace.workflow", "List, show, profile, pair and test facts.", "facts --show 3"),
        "models": Row(
            "models",
            "fasttrace.models",
            "List the model types that are supported, and what a model takes.",
            "models --model smollm2-135m",
        ),
        "env": Row("machine", "fasttrace.ops", "Print what is fast here, what is not, and what to do about it.", "env"),
    },
    "Trace": {
        "trace": Row(
            "trace",
            "fasttrace.workflow",
            "Measure what restoring each window brings back.",
            "trace --limit 3 --tokens subject --store study.duckdb",
        ),
        "stats": Row(
            "trace",
            "fasttrace.workflow",
            "Collect the second moments of keys.",
            "stats --layers 6 --corpus-tokens 4096 --store study.duckdb",
        ),
    },
    "Edit": {
        "edit": Row(
            "edit",
            "fasttrace.workflow",
            "Edit each fact at each layer, and score every edit.",
            "edit --limit 3 --method ft-1 --layers 0,6,12 --store study.duckdb",
        ),
        "mass": Row(
            "edit",
            "fasttrace.workflow",
            "Edit many facts into one model, and score all of them.",
            "mass --limit 3 --method ft-1 --layer 6 --delta many.safetensors",
        ),
        "tune": Row(
            "edit",
            "fasttrace.workflow",
            "Choose the best of a hyperparameter's values.",
            "tune --limit 3 --method ft-1 --layer 6 --values 1e-3,2e-3",
        ),
        "export": Row(
            "edit",
            "fasttrace.workflow",
            "Write an edited model that transformers can load.",
            "export many.safetensors edited/",
        ),
        "chat": Row(
            "chat",
            "fasttrace.editing",
            "Continue prompts, with an edited model or an unedited one.",
            "chat --delta many.safetensors --compare",
        ),
    },
    "Study": {
        "study": Row(
            "study",
            "fasttrace.study",
            "Trace, edit, analyse and report, as one resumable study.",
            "study smollm2-135m --dry-run",
        ),
        "demo": Row("study", "fasttrace.study", "Run the small study 'demo', from facts to report.", "demo --known 2"),
    },
    "Ask": {
        "sql": Row("sql", "fasttrace.store", "Query a store with SQL.", "sql scores_by_layer --store study.duckdb"),
        "regress": Row(
            "regress",
            "fasttrace.store",
            "Regress an edit score on layer, tracing effect or any column.",
            "regress 'rewrite ~ C(layer)' --store study.duckdb",
        ),
        "tables": Row(
            "read",
            "fasttrace.store",
            "Print the paper's tables from the data of a store.",
            "tables --store study.duckdb",
        ),
        "figures": Row(
            "read",
            "fasttrace.store",
            "Draw the paper's figures from the data of a store.",
            "figures 2 --format png --store study.duckdb",
        ),
        "report": Row(
            "read",
            "fasttrace.store",
            "Write a report on a store as one HTML file.",
            "report --store study.duckdb --out report.html",
        ),
        "claims": Row(
            "claims",
            "fasttrace.store",
            "Print which of the paper's claims a store confirms or refutes.",
            "claims --store study.duckdb",
        ),
    },
    "Machines": {
        "status": Row(
            "status",
            "fasttrace.store",
            "Print what a running command does, and what its store has.",
            "status --store study.duckdb",
        ),
        "merge": Row(
            "merge",
            "fasttrace.store",
            "Merge the stores of several machines into one.",
            "merge study.duckdb --into all.duckdb",
        ),
        "serve": Row(
            "serve", "fasttrace.store", "Serve a store to many processes at once.", "serve --store study.duckdb"
        ),
        "bench": Row(
            "bench",
            "fasttrace.benchmarks",
            "Time ops beside their reference and other ways.",
            "bench rms_norm --size rows=512 --no-compile",
        ),
        "completion": Row(
            "completion",
            "fasttrace.version",
            "Print what makes a shell complete verbs, options and names.",
            "completion bash",
        ),
    },
}
VERBS = {name: row for group in GROUPS.values() for name, row in group.items()}
