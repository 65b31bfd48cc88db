"""Four facts and the output of a command, for the tests of the command line."""

from typing import NamedTuple

FACTS = [
    {
        "prompt": "The {} is located in the city of",
        "subject": subject,
        "target_true": true,
        "target_false": false,
        "relation": "city",
        "paraphrases": [f"{subject} is in the city of"],
        "neighborhood": ["The France is located in the city of"],
    }
    for subject, true, false in [
        ("Eiffel Tower", "Paris", "Rome"),
        ("New York", "Rome", "Paris"),
        ("Tower", "Paris", "France"),
        ("Paris Tower", "Rome", "York"),
    ]
]


class Done(NamedTuple):
    """Output of a command."""

    stdout: str
    stderr: str
