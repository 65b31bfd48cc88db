"""A study from one file. The shipped files are beside this one: the paper's two, one for SmolLM2, and the demo."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from fasttrace.errors import UserError, did_you_mean
from fasttrace.facts import Fact
from fasttrace.facts.load import Loaded, read_facts
from fasttrace.facts.pairs import pair_subjects
from fasttrace.settings.base import check_names, replaced
from fasttrace.settings.kinds import MOST_CHARACTERS
from fasttrace.settings.methods import SOLVED, method_settings
from fasttrace.settings.moments import MomentSettings
from fasttrace.settings.study import TABLES, EditTable, FactSettings, StudySettings, keys
from fasttrace.settings.trace import TraceSettings

PARTS: dict[str, Any] = {"facts": {}, "trace": [], "moments": {}, "edit": []}  # the tables of a study file, empty


@dataclass(frozen=True)
class Study:
    """The checked content of a study file. traces, edits: one item per [[trace]] and [[edit]]."""

    name: str
    settings: StudySettings
    facts: FactSettings
    moments: MomentSettings
    traces: tuple[TraceSettings, ...]
    edits: tuple[EditTable, ...]

    @property
    def uses_cache(self) -> bool:
        """Whether an edit needs second moments, sampled contexts or essence texts, which the cache folder keeps."""
        return any({*one.methods} & {*SOLVED} or one.essence for one in self.edits)

    @cached_property
    def loaded(self) -> Loaded:
        """The facts of the file in its order, with what was left out of it. Raises FactError as `load_facts`."""
        return read_facts(self.facts.file, self.facts)

    @cached_property
    def candidates(self) -> list[Fact]:
        """The facts whose subjects may be counterfactuals: the whole file, so that the pairs do not depend on which
        facts are studied. Empty without pairs."""
        if self.facts.pairs is None:
            return []
        return read_facts(self.facts.file, replaced(self.facts, relation=None, limit=None, order="given")).facts

    def paired(self, tokenizer: Any, facts: Sequence[Fact]) -> list[Fact]:
        """The facts in their order, with counterfactual subjects where the study asks for them and there are some.

        Raises UserError where there are none, and FactError as `pair_subjects`.
        """
        if self.facts.pairs is None:
            return list(facts)
        return pair_subjects(tokenizer, facts, self.candidates, self.facts.pairs).checked().filled(facts)


def shipped() -> list[str]:
    """Names of the studies that come with fasttrace."""
    found = (file.name for file in files("fasttrace.studies").iterdir())
    return sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml"))


def load_study(source: str) -> Study:
    """Load a study by the path of its .toml file or by the name of a shipped study.

    Raises UserError, naming the file and the key, where the file is missing, is not TOML, or has an unknown key or a
    wrong value.
    """
    path = Path(source)
    if path.suffix == ".toml":
        if not path.is_file():
            raise UserError(f"there is no study file '{source}'; the shipped studies are {', '.join(shipped())}")
        text, name = path.read_bytes(), path.stem
    elif source in shipped():
        text, name = (files("fasttrace.studies") / f"{source}.toml").read_bytes(), source
    else:
        hint = did_you_mean(source, shipped())
        raise UserError(f"expected a .toml file or a shipped study ({', '.join(shipped())}), got '{source}'{hint}")
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"study file '{source}': expected at most {MOST_CHARACTERS} bytes, got {len(text)}")
    try:
        raw = tomllib.loads(text.decode("utf-8"))
    except RecursionError:
        raise UserError(f"study file '{source}' is not TOML that can be read: its values are nested too deep") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"study file '{source}' is not TOML: {error}") from error
    try:
        return _study(name, raw)
    except UserError as error:
        raise UserError(f"study file '{source}': {error}") from None


def _study(name: str, raw: dict[str, Any]) -> Study:
    tables = {part: raw.pop(part, empty) for part, empty in PARTS.items()}
    for part in ("trace", "edit"):
        if not isinstance(tables[part], list):
            raise UserError(f"[{part}]: expected tables, as [[{part}]], got {tables[part]!r}")
    settings = _table("study", raw)
    same = {"protocol": settings.protocol, "seed": settings.seed, "memory": settings.memory}
    edits = tuple(_table("edit", one, **same) for one in tables["edit"])
    for edit in edits:
        for method in edit.methods:
            method_settings(method, dict(edit.set or {}))
        if "contexts" in edit.given and not {*edit.methods} & {*SOLVED}:
            raise UserError(f"[edit] contexts: expected a value only with {', '.join(SOLVED)}, got one without them")
    # keep: `Runner.known_facts` chooses the facts instead.
    traces = tuple(_table("trace", one, **same, keep="all") for one in tables["trace"])
    facts = _table("facts", tables["facts"])
    if facts.pairs is not None and all(trace.corruption != "counterfactual" for trace in traces):
        raise UserError("[facts] pairs: expected a [[trace]] with corruption counterfactual, got none")
    return Study(
        name=name,
        settings=settings,
        facts=facts,
        moments=_table("moments", tables["moments"], seed=settings.seed),
        traces=traces,
        edits=edits,
    )


def _table(part: str, table: Any, **stated: Any) -> Any:
    """The settings of a table, together with those that are stated outside it."""
    if not isinstance(table, dict):
        raise UserError(f"[{part}]: expected a table, got {table!r}")
    check_names(f"[{part}]", table, keys(part) + (list(PARTS) if part == "study" else []))
    kind, _ = TABLES[part]
    try:
        return kind(**table, **stated)
    except UserError as error:
        _, _, sentence = str(error).partition(": ")
        raise UserError(f"[{part}] {sentence}") from None
