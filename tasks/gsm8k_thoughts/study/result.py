"""The whole study of one model, as a run folder: tables, figures, one page."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from circuits.models.hooked import HookedModel
from circuits.patch import patch
from circuits.runs import (
    RunError,
    default_folder,
    new_run,
    read_record,
    read_scores,
    versions,
    write_record,
    write_scores,
)
from circuits.task import Task, TaskError
from tasks.gsm8k_thoughts.chains import draw_different
from tasks.gsm8k_thoughts.model import require_thoughts
from tasks.gsm8k_thoughts.pairs import FAMILIES, chain_vocabulary
from tasks.gsm8k_thoughts.study.changes import ablations, by_count, interchange, necessity
from tasks.gsm8k_thoughts.study.readings import logit_lens, probes, value_names
from tasks.gsm8k_thoughts.study.swaps import mediation, whole_thoughts

TABLES = ("swaps", "mediation", "patches", "lens", "probes", "interchange", "ablations", "counts")
SIGN = "recovery: 0 as in the corrupted problem, 1 as in the clean one; positive is toward clean"


@dataclass(frozen=True, eq=False)
class ThoughtStudy:
    """Tables by name, each tidy, one row a figure with its 95% interval; and the record.

    swaps: whole thoughts exchanged, by family and mode. mediation: the operands' effect, and the
    share of it that goes through thoughts. patches: the stream patched at layer and position.
    lens, probes: what can be read. interchange: does the answer follow a foreign value. ablations:
    thoughts replaced. counts: accuracy after so many thoughts.
    """

    tables: Mapping[str, pd.DataFrame]
    record: dict[str, Any]

    def save(self, folder: str | Path | None = None) -> Path:
        """Write the run's folder and return its path."""
        from tasks.gsm8k_thoughts.study.figures import study_page

        target = Path(folder) if folder else default_folder("gsm8k_thoughts", "study")
        with new_run(target) as work:
            write_record(work, {**self.record, "said": self.said()})
            parts = [table.assign(table=name) for name, table in self.tables.items()]
            write_scores(work, pd.concat(parts, ignore_index=True))
            (work / "thoughts.html").write_text(study_page(self), encoding="utf-8")
        return target

    @classmethod
    def load(cls, folder: str | Path) -> ThoughtStudy:
        """Read a study back."""
        record, scores = read_record(folder), read_scores(folder)
        record.pop("format", None)
        record.pop("said", None)
        if record.get("method") != "study" or "table" not in scores:
            raise RunError(f"{folder} is no study of thoughts.")
        tables = {}
        for name in record["columns"]:
            kinds = record["columns"][name]
            table: Any = scores[scores["table"] == name][list(kinds)]
            tables[name] = table.reset_index(drop=True).astype(kinds)
        return cls(tables, record)

    def carrier(self) -> dict[str, Any]:
        """The thought whose exchange alone recovers most where the last value before the answer
        changes, and what it does in the null family."""
        swaps: Any = self.tables["swaps"]
        alone = swaps[swaps["place"].str.fullmatch(r"t\d+") & (swaps["thoughts"] == "rerolled")]
        family = "later" if "later" in set(alone["family"]) else "first"
        best = alone[alone["family"] == family].sort_values("recovery").iloc[-1]
        null = swaps[(swaps["family"] == "null") & (swaps["place"] == best["place"])]
        return {"family": family, **best.to_dict(), "null_flips": float(null["flips"].max())}

    def said(self) -> list[str]:
        """What was found, in a few lines."""
        best = self.carrier()
        low, high = best["recovery_low"], best["recovery_high"]
        return [
            f"{self.record['model']}: {best['place']} alone recovers {best['recovery']:.2f} "
            f"[{low:.2f}, {high:.2f}] of {best['family']}; in the null family it turns "
            f"{best['null_flips']:.1%} of the answers.",
            f"The thoughts are {self.record['verdict']}.",
        ]


def study(
    model: HookedModel,
    task: Task,
    *,
    n_pairs: int = 200,
    n_problems: int = 1000,
    seed: int = 0,
    control: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> ThoughtStudy:
    """Everything that `ThoughtStudy` holds, of a model that was trained on chains.

    n_pairs: of every family. n_problems: for readings, exchanges and ablations, of the most steps
    the model was trained with; none of them was trained on. control: the card of the model that was
    trained without thoughts, for what may be said of necessity.
    """
    started = time.perf_counter()
    require_thoughts(model)
    if control is not None:
        _check_control(model, control)
    vocabulary = chain_vocabulary(model)
    steps = model.thoughts.steps[1]  # type: ignore[union-attr]
    # Each problem once: probes are fitted on half of them and tested on the other.
    chains = draw_different(
        np.random.default_rng([seed, 3]), n_problems, steps, vocabulary.n_numbers, "held_out"
    )
    drawn: Any = task
    families = [f for f in FAMILIES if f != "later" or steps > 2]
    pairs = {f: drawn.pairs(model, contrast=f, n=n_pairs, seed=seed) for f in families}

    def each(work: Callable[[Any], pd.DataFrame]) -> pd.DataFrame:
        return pd.concat([work(p).assign(family=f) for f, p in pairs.items()], ignore_index=True)

    def patched(family: str) -> pd.DataFrame:
        found = patch(model, task, pairs=pairs[family], site="resid_post", progress=False)
        longest = found.alignments()[0]
        table: Any = found.summary(longest)
        names = {p: n.split("/")[0] for p, n in found.named_positions(longest).items()}
        table = table.assign(place=table["position"].map(names), family=family)
        columns = ["family", "layer", "place", "share", "share_low", "share_high"]
        return table[table["place"].notna()][columns]

    jobs: dict[str, Callable[[], pd.DataFrame]] = {
        "swaps": lambda: each(lambda p: whole_thoughts(model, p)),
        "mediation": lambda: each(lambda p: pd.DataFrame([mediation(model, p)])),
        "patches": lambda: pd.concat([patched(f) for f in families], ignore_index=True),
        "lens": lambda: logit_lens(model, chains),
        "probes": lambda: probes(model, chains, seed=seed),
        "interchange": lambda: interchange(model, chains, seed=seed),
        "ablations": lambda: ablations(model, chains, seed=seed),
        "counts": lambda: by_count(model, chains),
    }
    tables: dict[str, pd.DataFrame] = {}
    bar = tqdm(jobs.items(), desc="study", unit="table", disable=not progress)
    for name, job in bar:
        bar.set_description(name)
        tables[name] = job()
    counts: Any = tables["counts"]
    replaced: Any = tables["ablations"]
    mean = replaced[
        (replaced["ablation"] == "mean")
        & (replaced["place"] == "all")
        & (replaced["thoughts"] == "frozen")
    ]
    alone = None if control is None else float(control["accuracy_after_thoughts"][0])
    verdict = necessity(float(mean["accuracy"].iloc[0]), float(counts["accuracy"].iloc[-1]), alone)
    record = {
        "method": "study",
        "task": task.name,
        "model": model.name,
        "model_sha256": model.sha256,
        "steps": steps,
        "values": value_names(steps),
        "n_pairs": n_pairs,
        "n_problems": n_problems,
        "seed": seed,
        "control_accuracy": alone,
        "verdict": verdict,
        "sign_convention": SIGN,
        "columns": {
            name: {str(column): str(kind) for column, kind in table.dtypes.items()}
            for name, table in tables.items()
        },
        "versions": versions(),
        "seconds": time.perf_counter() - started,
    }
    return ThoughtStudy(tables, record)


def _check_control(model: HookedModel, card: Mapping[str, Any]) -> None:
    """Raise `TaskError` for a card that is not of a control for this model."""
    options = card["options"]
    thoughts: Any = model.thoughts
    mine = {"numbers": thoughts.vocabulary.n_numbers, "steps": list(thoughts.steps)}
    mine |= {"layers": model.n_layers, "d_model": model.d_model, "thoughts": 0}
    other = {name: options[name] for name in mine if options[name] != mine[name]}
    if other:
        raise TaskError(
            f"the control has {other}, which {model.name}'s would have as "
            f"{ {name: mine[name] for name in other} }: give the card of one that was trained with "
            "--thoughts 0 and the same options."
        )
