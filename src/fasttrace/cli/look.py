"""What `facts --show` and `facts --profile` print: a look at facts before a run, with the model's tokenizer alone."""

import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fasttrace.errors import FactError
from fasttrace.show.words import count, escaped

if TYPE_CHECKING:
    from rich.text import Text

    from fasttrace.facts import EncodedFact, Fact
    from fasttrace.facts.profile import Counted, Noticed, Profile, Spread

MOST_ANSWERS = 3  # of a probe that are printed as text; --json has all
MOST_IDS = 3  # of facts that have something in common, which are printed as text
MOST_VALUES = 10  # relations, sources and ways to find a subject that are printed as text
NAMES = {"target_true": "o_true", "target_false": "o_false", "counterfactual_answer": "counterfactual answer"}
BEGIN, END, BETWEEN = "⟦", "⟧", "|"


# ---- facts and their tokens -------------------------------------------------------------------------------


def looked_at(tokenizer: Any, fact: "Fact") -> dict[str, Any]:
    """A fact with its tokens, its targets with theirs, and its probes, as JSON values.

    tokens: (T) texts of the prompt's tokens, of which the subject has [subject_begin, subject_end). token_ids: (T).
    They are None where the fact cannot be encoded, and `reason` says why. misfits: why counterfactuals do not fit.
    """
    from fasttrace.facts import encode_fact

    encoded, reason = None, None
    try:
        encoded = encode_fact(tokenizer, fact)
    except FactError as error:
        reason = str(error)
    return {
        "fact_id": fact.fact_id,
        "relation": fact.relation,
        "source": fact.source,
        "case_id": fact.case_id,
        "case_edits": fact.case_edits,
        "subject_found": fact.subject_found,
        "subject": fact.subject,
        "prompt": fact.text,
        "tokens": encoded and list(encoded.tokens),
        "token_ids": encoded and list(encoded.ids),
        "subject_begin": encoded and encoded.subject_begin,
        "subject_end": encoded and encoded.subject_end,
        "reason": reason,
        "targets": [
            {"name": name, **_scored(fact, fact.text, target), **_target_tokens(tokenizer, encoded, fact, name)}
            for name, target in _targets(fact)
        ],
        "counterfactuals": list(fact.counterfactuals),
        "misfits": list(encoded.misfits) if encoded is not None else [],
        "probes": [
            {
                "kind": one.kind,
                "expect": one.expect,
                "after": one.after,
                "prompt": one.prompt,
                "answers": list(one.answers),
                "scored": list(_answers(fact, one.prompt, one.answers)),
            }
            for one in fact.every_probe
        ],
    }


def _targets(fact: "Fact") -> Iterator[tuple[str, str]]:
    """(field, text) of each target that the fact has."""
    for name in NAMES:
        if (target := getattr(fact, name)) is not None:
            yield name, target


def _scored(fact: "Fact", prompt: str, target: str) -> dict[str, str]:
    """A target, what joins it to a prompt, and the text of both."""
    from fasttrace.facts.joint import joint

    between = joint(prompt, target, fact.target_prefix)
    return {"target": target, "joint": between, "text": prompt + between + target.strip()}


def _answers(fact: "Fact", prompt: str, answers: Sequence[str]) -> Iterator[dict[str, str]]:
    """What is scored after a probe's prompt: its answers, or without any the fact's targets."""
    if answers:
        yield from ({"name": "answer", **_scored(fact, prompt, answer)} for answer in answers)
    else:
        own = ((name, target) for name, target in _targets(fact) if name != "counterfactual_answer")
        yield from ({"name": name, **_scored(fact, prompt, target)} for name, target in own)


def _target_tokens(tokenizer: Any, encoded: "EncodedFact | None", fact: "Fact", name: str) -> dict[str, Any]:
    from fasttrace.facts import encode_joined

    if encoded is None:
        return {"tokens": None, "token_ids": None}
    ids = {"target_true": encoded.target_true_ids, "target_false": encoded.target_false_ids}.get(name)
    if ids is None:
        [ids] = encode_joined(tokenizer, fact.text, [getattr(fact, name)], fact.target_prefix).targets
    tokens = [tokenizer.decode([one], clean_up_tokenization_spaces=False) for one in ids]
    return {"tokens": tokens, "token_ids": list(ids)}


def shown(rows: Sequence[dict[str, Any]]) -> str:
    """Facts, as `looked_at` gives them, as text. On a terminal the subject's tokens have a colour, too."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=(file := io.StringIO()), force_terminal=sys.stdout.isatty())
    for row in rows:
        for line in (*_head(row), *_probe_lines(row), Text()):
            console.print(line, soft_wrap=True, highlight=False)
    return file.getvalue()


def _head(row: dict[str, Any]) -> Iterator["Text"]:
    """The lines of a fact above its probes."""
    from rich.text import Text

    about = [row["relation"] or "no relation"]
    if row["case_id"] is not None:
        about.append(f"case {row['case_id']} of {row['case_edits']} edits")
    if row["subject_found"] != "template":
        about.append(f"subject found: {row['subject_found']}")
    if row["tokens"] is not None:
        about.append(count(len(row["tokens"]), "token"))
    yield Text.assemble((escaped(row["fact_id"]), "bold"), f"  {escaped(', '.join(about))}")
    if row["tokens"] is None:
        yield Text(f"  cannot be encoded: {row['reason']}")
        return
    wide = max(len(NAMES[one["name"]]) for one in row["targets"])
    line = Text(f"  {'prompt':<{wide}}  ")
    for place, token in enumerate(row["tokens"]):
        inside = row["subject_begin"] <= place < row["subject_end"]
        line.append(BETWEEN if place else "", "dim")
        line.append(BEGIN if place == row["subject_begin"] else "", "dim")
        line.append(_token(token), "bold cyan" if inside else "")
        line.append(END if place == row["subject_end"] - 1 else "", "dim")
    yield line
    for one in row["targets"]:
        yield Text(f"  {NAMES[one['name']]:<{wide}}  …{BETWEEN}{BETWEEN.join(map(_token, one['tokens']))}")
    if row["counterfactuals"]:
        fit = len(row["counterfactuals"]) - len(row["misfits"])
        yield Text(f"  {fit} of {len(row['counterfactuals'])} counterfactuals fit")
        yield from (Text(f"  {escaped(why)}") for why in row["misfits"])


def _token(token: str) -> str:
    return str(escaped(token.replace(BETWEEN, f"\\{BETWEEN}")))


def _probe_lines(row: dict[str, Any]) -> Iterator["Text"]:
    """The prompt and the probes with what is scored after them, as the lines of a table."""
    from rich.text import Text

    from fasttrace.analysis.terminal import grid

    cells = [("prompt", "–", NAMES[one["name"]], repr(one["joint"]), one["text"]) for one in row["targets"]]
    for probe in row["probes"]:
        expect = probe["expect"] + (", after the case" if probe["after"] == "case" else "")
        for one in probe["scored"][:MOST_ANSWERS]:
            name = NAMES.get(one["name"], one["name"])
            cells.append((probe["kind"], expect, name, repr(one["joint"]), one["text"]))
        if (more := len(probe["scored"]) - MOST_ANSWERS) > 0:
            cells.append((probe["kind"], expect, "answer", "", f"… and {more} more"))
    columns = [[escaped(cell) for cell in column] for column in zip(*cells, strict=True)]
    text = grid(["kind", "expect", "scored", "joint", "text"], columns, [False] * 5)
    yield from (Text(f"  {line}") for line in text.splitlines())


# ---- a profile --------------------------------------------------------------------------------------------


def profile_row(found: "Profile", source: str, format: str, left_out: int) -> dict[str, Any]:
    """A profile as JSON values. left_out: records, and parts of records, that are left out of the facts."""
    return {"source": source, "format": format, "left_out": left_out, **asdict(found)}


def profile_tables(
    found: "Profile", source: str, format: str, left_out: int
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(title, rows) of the tables that a profile is printed as."""
    lines = [{"what": what, "number": n, "such_as": such} for what, n, such in _lines(found, left_out)]
    yield escaped(f"{source}, format {format}"), lines
    lengths = {"prompt": found.prompt_tokens, "o_true": found.true_tokens, "o_false": found.false_tokens}
    yield "Lengths in tokens", [_length(what, spread) for what, spread in lengths.items() if spread is not None]
    yield "Relations", _values("relation", found.relations)
    yield "Sources", _values("source", found.sources)
    yield "How the subjects were found", _values("found", found.subjects_found)
    if found.probes:
        yield "Probes", [asdict(one) for one in found.probes]


def _values(name: str, counted: "Sequence[Counted]") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{name: escaped(one.value), "facts": one.facts} for one in counted[:MOST_VALUES]]
    if rest := counted[MOST_VALUES:]:
        rows.append({name: f"{len(rest)} others", "facts": sum(one.facts for one in rest)})
    return rows


def _length(what: str, spread: "Spread") -> dict[str, Any]:
    return {"of": what, "least": spread.min, "median": f"{spread.median:g}", "most": spread.max}


def _lines(found: "Profile", left_out: int) -> Iterator[tuple[str, int, str]]:
    """(what, how many, such as) of the counts. What a reader should look at is listed where there is some."""
    yield "facts", found.facts, ""
    if left_out:
        yield "records or parts of records left out", left_out, ""
    if found.case_edits is not None:
        least, most = found.case_edits.min, found.case_edits.max
        each = f"{least} to {most} facts each" if least < most else f"{count(least, 'fact')} each"
        yield "cases, whose facts are edited together", found.cases, each
    if found.duplicates:
        first = found.duplicates[0]
        ids = ", ".join(first[:MOST_IDS]) + (", …" if len(first) > MOST_IDS else "")
        yield "prompts with the same subject under several ids", len(found.duplicates), escaped(ids)
    noticed: tuple[tuple[str, Noticed], ...] = (
        ("cannot be encoded", found.refused),
        ("tokens that the tokenizer does not know", found.unknown),
        ("damaged characters (U+FFFD)", found.replaced),
        ("control characters, such as line breaks", found.control),
        ("o_true and o_false begin with the same token", found.same_first_token),
        ("a token has a part of the subject and more", found.cut_subjects),
        ("a counterfactual does not fit", found.misfits),
    )
    for what, one in noticed:
        if one.facts:
            ids = ", ".join(one.first[:MOST_IDS]) + (", …" if one.facts > MOST_IDS else "")
            yield what, one.facts, escaped(f"{one.first[0]}: {one.why}" if one.why else ids)
