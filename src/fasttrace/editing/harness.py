"""Tasks of lm-evaluation-harness on a model, through the package's own API (EleutherAI/lm-evaluation-harness)."""

import copy
import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fasttrace.errors import UserError, shown
from fasttrace.models.adapter import Decoder
from fasttrace.models.generate import start_ids
from fasttrace.optional import require
from fasttrace.settings.base import refusal
from fasttrace.settings.mass import MassSettings

ROWS = 8  # requests that the harness runs together
BOOTSTRAP = 1000  # resamples for the standard errors that have no formula


@dataclass(frozen=True, eq=False)
class Harness:
    """Tasks to run. tasks: names. limit: of items per task, None for all. manager: the package's TaskManager.
    identity: entries in the run's settings: the package's version, and a hash of the user's own tasks."""

    tasks: tuple[str, ...]
    limit: int | None
    seed: int
    manager: Any
    identity: Mapping[str, str]

    def run(self, model: Decoder) -> list[dict[str, Any]]:
        """Run the tasks on the model's weights as they are now, by its transformers module.

        Returns rows of TASKS with task, metric ("acc,none": metric and filter, as the harness names them), value,
        value_sem and samples. Raises UserError where a task cannot be run, such as for want of its data.
        """
        lm_eval, models = require("lm_eval"), import_module("lm_eval.models.huggingface")
        # A copy, because the harness adds a token for padding.
        tokenizer = copy.deepcopy(model.tokenizer)
        ends = (tokenizer.bos_token_id, tokenizer.eos_token_id)
        start = start_ids(model)[0] if ends == (None, None) else None  # None: as the harness chooses
        try:
            asked = models.HFLM(pretrained=model.hf, tokenizer=tokenizer, batch_size=ROWS, prefix_token_id=start)
            asked._device = model.device  # it takes that of the first weight, which has none while it is offloaded
            found = lm_eval.simple_evaluate(
                model=asked,
                tasks=list(self.tasks),
                limit=self.limit,
                task_manager=self.manager,
                bootstrap_iters=BOOTSTRAP,
                log_samples=False,
                random_seed=None,  # so that the generators of the process stay as they are
                numpy_random_seed=None,
                torch_random_seed=None,
                fewshot_random_seed=self.seed,
            )
        except Exception as error:  # tasks are code and data of others, which may raise anything
            got = f"{type(error).__name__} from {', '.join(self.tasks)}"
            reason = (str(error).strip().splitlines() or ["no reason"])[0]
            raise UserError(f"mass: lm_eval: expected tasks that can be run, got {got}: {reason}") from error
        return [
            {"task": task, **row, "samples": found.get("n-samples", {}).get(task, {}).get("effective")}
            for task, values in found["results"].items()
            for row in _metrics(values)
        ]


def _metrics(values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The metrics of a task, from {"acc,none": value, "acc_stderr,none": standard error or "N/A", …}."""
    for metric, value in values.items():
        name, _, filtered = metric.partition(",")
        if not filtered or name.endswith("_stderr") or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        sem = values.get(f"{name}_stderr,{filtered}")
        yield {"metric": metric, "value": float(value), "value_sem": float(sem) if isinstance(sem, float) else None}


def task_files(folder: str | Path | None) -> list[Path]:
    """The files of a folder of the user's own tasks, in order of name."""
    if folder is None:
        return []
    return sorted(path for path in Path(folder).expanduser().rglob("*") if path.is_file() and path.suffix != ".pyc")


def prepare_harness(model: Decoder, asked: MassSettings) -> Harness | None:
    """The tasks that are asked for, or None.

    Raises PackageError where lm_eval is not installed, and UserError for an unknown task or folder.
    """
    if asked.lm_eval is None:
        return None
    require("lm_eval")
    folder = None if asked.lm_eval_tasks is None else Path(asked.lm_eval_tasks).expanduser()
    if folder is not None and not folder.is_dir():
        raise refusal(asked, "lm_eval_tasks", "a folder of task files", f"'{folder}', which is not one")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = import_module("lm_eval.tasks").TaskManager(include_path=None if folder is None else str(folder))
    unknown = [name for name in asked.lm_eval if name not in manager.all_tasks]
    if unknown:
        raise refusal(
            asked, "lm_eval", "tasks of lm-evaluation-harness (`lm_eval ls tasks` lists them)", shown(unknown[0])
        )
    identity = {"lm_eval_version": version("lm_eval")}
    if folder is not None:
        found = hashlib.sha256()
        for path in task_files(folder):
            raw = path.read_bytes()
            found.update(f"{path.relative_to(folder)}:{len(raw)}:".encode() + raw)
        identity["lm_eval_hash"] = found.hexdigest()[:32]
    return Harness(tuple(asked.lm_eval), asked.lm_eval_limit, asked.seed, manager, identity)
