"""Tasks of lm_eval (EleutherAI's harness), with a model that is loaded already."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from spqfmt.errors import OptionError, SpqError, foreign_errors

_SPREAD = "_stderr"


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task. `error` is its standard error, None where lm_eval gives none; `n` counts documents."""

    task: str
    metric: str
    value: float
    error: float | None
    n: int

    def to_json(self) -> dict[str, Any]:
        """A row of what `spqfmt eval --tasks --json` prints; JSON has no number for what is none: null."""
        value = self.value if math.isfinite(self.value) else None
        return {"task": self.task, "metric": self.metric, "value": value, "stderr": self.error, "n": self.n}


def need_harness() -> None:
    """Raise OptionError where lm_eval is not installed."""
    if find_spec("lm_eval") is None:
        raise OptionError("tasks are run by lm_eval, which is not installed: pip install 'spqfmt[lm-eval]'")


class Tasks:
    """Tasks by their names, groups and patterns too, from lm_eval's own and from the yaml files of a folder."""

    def __init__(self, names: Sequence[str], folder: Path | None = None) -> None:
        """Raise OptionError for a name that nothing has, and where lm_eval is not installed."""
        need_harness()
        from lm_eval.tasks import TaskManager

        with foreign_errors(
            lambda why: OptionError(f"{folder or 'lm_eval'}: its tasks cannot be read ({why})")
        ):
            self._manager = TaskManager(include_path=None if folder is None else str(folder))
            unknown = [name for name in names if not self._manager.match_tasks([name])]
            self._names = self._manager.match_tasks(list(names))
        if unknown:
            where = "" if folder is None else f", nor in {folder}"
            raise OptionError(f"lm_eval has no task {', '.join(map(repr, unknown))}{where}")

    def run(
        self,
        model: Any,
        tokenizer: Any,
        *,
        limit: int | None = None,
        few_shot: int | None = None,
        batch: int = 1,
    ) -> list[TaskScore]:
        """Every metric of every task. `limit` takes the first documents of each, `few_shot` puts examples before.

        Raises SpqError where a task cannot be had or run: most get their data from the network.
        """
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        asked = ", ".join(self._names)
        with foreign_errors(lambda why: SpqError(f"lm_eval cannot run {asked} ({why})")):
            harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)
            found = lm_eval.simple_evaluate(
                model=harness,
                tasks=self._names,
                task_manager=self._manager,
                num_fewshot=few_shot,
                limit=limit,
                log_samples=False,
            )
        return _scores(found or {})


def _scores(found: Mapping[str, Any]) -> list[TaskScore]:
    """The numbers of lm_eval's results, whose keys are `metric,filter`."""
    scores = []
    for task, said in found.get("results", {}).items():
        n = int(found.get("n-samples", {}).get(task, {}).get("effective", 0))
        for key, value in said.items():
            metric, _, rule = key.partition(",")
            if isinstance(value, bool) or not isinstance(value, int | float) or not rule or _SPREAD in metric:
                continue
            error = said.get(f"{metric}{_SPREAD},{rule}")
            spread = float(error) if isinstance(error, int | float) and math.isfinite(error) else None
            shown = metric if rule == "none" else f"{metric} ({rule})"
            scores.append(TaskScore(task=task, metric=shown, value=float(value), error=spread, n=n))
    return scores
