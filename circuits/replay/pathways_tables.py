"""From outcomes trial by trial to tables with tests, shares and intervals."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from circuits.hypotheses.assess import false_discoveries
from circuits.replay.confirm import Confirmed, Setting, Wired
from circuits.replay.interventions import describe
from circuits.replay.paired import Share, Units, share, sign_flips, summarise
from circuits.replay.pathways_graph import graph_of
from circuits.replay.pathways_result import SIGN, PathwaysResult
from circuits.replay.routes import Routes
from circuits.runs import versions

if TYPE_CHECKING:
    from circuits.replay.pathways import Plan

_FEWEST_STEPS = 6  # units with a step, for an interval there


def tables_of(
    table: pd.DataFrame,
    trials: pd.DataFrame,
    found: Confirmed,
    wired: Wired,
    rows: Int[np.ndarray, " confirms"],
    seen: Routes,
    units: tuple[Units, Units, Units],
    setting: Setting,
    plan: Plan,
    noise: float,
) -> PathwaysResult:
    """Everything that is reported.

    table: of latents, with what was found of mediators. trials: those that were run again, in the
    order of `seen`; `rows` of them, in the order of `found` and `wired`, confirm and did not choose
    (pathways_choice.py). units: of the run, of the trials that were run again, and of those that
    confirm. noise: differences of outcomes up to this are rounding.
    """
    _, held, half = units
    effects = _effects(found, wired, seen, (half, held), plan, noise)
    source = setting.source[0]
    record: dict[str, Any] = {
        "method": "pathways",
        "source": describe(source),
        "outcome": plan.outcome.name,
        "outcome_unit": plan.outcome.unit,
        "level": plan.level,
        "unit": units[0].kind,
        "units": len(units[0]),
        "prompts": units[0].n_prompts,
        "n_trials": len(units[0].prompt),
        "smallest_p": units[0].smallest_p,
        "smallest_p_held": held.smallest_p,
        "unit_held": held.kind,
        "units_held": len(held),
        "trials_held": len(held.prompt),
        "smallest_p_confirmed": half.smallest_p,
        "units_confirmed": len(half),
        "prompts_confirmed": half.n_prompts,
        "trials_confirmed": len(rows),
        "mediators": len(found.mediators),
        "confirmed": len(wired.mediators),
        "carried_by_all": _carried(effects, "mediated"),
        "carried_by_confirmed": _carried(effects, "confirmed"),
        "noise": noise,
        "plan": {
            **asdict(plan),
            "outcome": plan.outcome.text,
            "sites": None if plan.sites is None else [str(s) for s in plan.sites],
        },
        "model": setting.model.name,
        "model_sha256": setting.model.sha256,
        "dtype": str(setting.model.dtype).removeprefix("torch."),
        "saes": [setting.saes.describe(site) for site in setting.saes],
        "sign_convention": SIGN,
        "versions": versions(),
    }
    graph = graph_of(table, effects, found, wired, half, setting, record)
    steps = _steps(seen, held, plan.seed)
    by_trial = _by_trial(trials, found, wired, rows, seen)
    return PathwaysResult(table, effects, steps, by_trial, graph, record)


def _carried(effects: pd.DataFrame, name: str) -> dict[str, Any]:
    """What mediators carry together, for the record."""
    row: Any = effects[effects["name"] == name].iloc[0]
    return {key: row[key] for key in ("value", "low", "high", "share", "share_low", "share_high")}


def with_mediators(
    table: pd.DataFrame, found: Confirmed, units: Units, plan: Plan, noise: float
) -> pd.DataFrame:
    """The table of latents with the columns of those that were frozen, NaN in the others."""
    rows: list[dict[str, Any]] = []
    through = found.total[:, None] - found.left
    p = sign_flips(through, units, seed=plan.seed)
    q = false_discoveries(p)
    for i, (site, latent) in enumerate(found.mediators):
        row: dict[str, Any] = {"site": str(site), "latent": latent}
        parts = {"mediated": through, "alone": found.alone, "direct": found.direct}
        for name, values in parts.items():
            row |= _interval(values[:, i], units, plan.seed, name)
        row |= {"mediated_p": p[i], "mediated_q": q[i]}
        carried = _part(through[:, i], found.total, units, plan, noise)
        row |= _share(carried)
        clear = row["mediated_low"] > 0 or row["mediated_high"] < 0  # not where there is none
        row["confirmed"] = bool(clear and q[i] <= plan.level and abs(row["mediated"]) > noise)
        rows.append(row)
    names = ["site", "latent"]
    for name in ("mediated", "alone", "direct"):
        names += [name, f"{name}_low", f"{name}_high"]
    names += ["mediated_p", "mediated_q", "share", "share_low", "share_high", "confirmed"]
    made = pd.DataFrame(rows, columns=names).astype({"latent": "int64", "confirmed": "boolean"})
    merged = table.merge(made, on=["site", "latent"], how="left")
    return merged.assign(confirmed=merged["confirmed"].fillna(False).astype(bool))


def _part(
    part: Float[np.ndarray, " trial"],
    total: Float[np.ndarray, " trial"],
    units: Units,
    plan: Plan,
    noise: float,
) -> Share:
    """The share of a total, refused where shares have no meaning: KL is about quadratic in what is
    changed, so that two mediators of one half each would carry three quarters each, and it is never
    below 0, so that no interval of a total says that there is none."""
    found = share(part, total, units, noise=noise, seed=plan.seed)
    if plan.outcome.kind == "kl" and not found.problem:
        nan = float("nan")
        return Share(nan, nan, nan, "KL is not linear: its parts overlap and do not add up")
    return found


def _interval(
    values: Float[np.ndarray, " trial"], units: Units, seed: int, name: str = ""
) -> dict[str, float]:
    """Mean, low and high under these names."""
    got = summarise(values, units, seed=seed)
    names = (name, f"{name}_low", f"{name}_high") if name else ("value", "low", "high")
    ends = (got.value, got.low, got.high)
    return {key: float(value) for key, value in zip(names, ends, strict=True)}


def _share(found: Share) -> dict[str, Any]:
    return {"share": found.value, "share_low": found.low, "share_high": found.high}


def _effects(
    found: Confirmed,
    wired: Wired,
    seen: Routes,
    units: tuple[Units, Units],
    plan: Plan,
    noise: float,
) -> pd.DataFrame:
    """units: of the trials that confirm, and of all that were run again."""
    split = seen.parts
    values = {
        "base": (found.base, None),
        "total": (found.total, None),
        "direct": (found.left_all, found.total),
        "mediated": (found.total - found.left_all, found.total),
        "confirmed": (found.total - wired.left_all, found.total),
        "rest": (wired.left_all, found.total),
        "controls": (found.total - found.left_controls, found.total),
        "seen": (split["total"], None),
        "seen_direct": (split["direct"], split["total"]),
        "seen_by_tokens": (split["by_tokens"], split["total"]),
        "seen_interaction": (split["interaction"], split["total"]),
    }
    rows = []
    for name, (part, total) in values.items():
        mine = units[name.startswith("seen")]
        row: dict[str, Any] = {"name": name, **_interval(part, mine, plan.seed)}
        of = Share(float("nan"), float("nan"), float("nan"))
        if total is not None and not np.isnan(part).any():
            of = _part(part, total, mine, plan, noise)
        rows.append({**row, **_share(of), "problem": of.problem})
    return pd.DataFrame(rows)


def _steps(seen: Routes, units: Units, seed: int) -> pd.DataFrame:
    """The split at every step that both texts of some trials have."""
    rows = []
    for part, values in seen.step_parts.items():
        for step in range(values.shape[1]):
            some = ~np.isnan(values[:, step])
            if not some.any():
                continue
            row: dict[str, Any] = {"step": step, "trials": int(some.sum()), "part": part}
            kept, of = values[some, step], units.prompt[some]
            # Trials may be left alone in their prompts: those prompts' spread is not known.
            mine = Units(np.unique(of, return_inverse=True)[1].reshape(-1), units.kind)
            if len(mine) >= _FEWEST_STEPS and mine.bounded:
                row |= _interval(kept, mine, seed)
            else:
                row |= {"value": float(kept.mean()), "low": float("nan"), "high": float("nan")}
            rows.append(row)
    return pd.DataFrame(rows, columns=["step", "trials", "part", "value", "low", "high"])


def _by_trial(
    trials: pd.DataFrame,
    found: Confirmed,
    wired: Wired,
    rows: Int[np.ndarray, " confirms"],
    seen: Routes,
) -> pd.DataFrame:
    columns = {"base": found.base, "total": found.total, "left_all": found.left_all}
    columns |= {"left_confirmed": wired.left_all, "left_controls": found.left_controls}
    for i, (site, latent) in enumerate(found.mediators):
        columns[f"left:{site}:{latent}"] = found.left[:, i]
        columns[f"alone:{site}:{latent}"] = found.alone[:, i]
    wide = {name: np.full(len(trials), np.nan) for name in columns}
    for name, values in columns.items():
        wide[name][rows] = values
    confirms = np.isin(np.arange(len(trials)), rows)
    return trials.assign(confirms=confirms, **seen.cells, **wide)
