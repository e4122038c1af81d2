"""Is an attribution right? Its nodes against exact interventions.

The strongest nodes and random others are checked against two exact quantities: `own`, the one that
the method estimates (one node patched, for `atp`; the node's share of the joint change along the
path, for `ig`, at up to 10 points), and `single`, one node patched by itself, for every method.
Nodes are compared by their means over the audited pairs. The completeness residual compares the sum
over all nodes of a site with the exact effect of patching the whole site.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from circuits.attribute.batch import Batch, Sources
from circuits.attribute.exact import path_effects
from circuits.attribute.plan import Plan
from circuits.attribute.scores import exact_effects
from circuits.models.hooked import HookedModel
from circuits.prompts import PairGroup

if TYPE_CHECKING:
    from circuits.attribute.result import Attribution

_MOST_POINTS = 10  # of the path, at each of which every node is patched twice
KEY = ["site", "role", "position", "latent"]


def audit(
    model: HookedModel, sources: Sources, plan: Plan, found: Attribution, *, progress: bool = True
) -> dict[str, Any]:
    """Check `plan.audit_nodes` strongest and as many random nodes on the first
    `plan.audit_pairs` pairs of the largest group that lines up.

    Returns, for run.json: `nodes` (one row a node: its key, group top or random, estimate, own,
    single), `spearman`, `pearson`, `sign_agreement` (against own; with `_single` behind them,
    against single), `misses` (the worst five), `completeness_residual` (by site, and the largest
    size of it, as a share of the mean exact effect of whole sites).
    """
    chosen = found.prompts.alignments()[0].pairs[: plan.audit_pairs]
    scores: Any = found.scores[found.scores["pair"].isin(chosen)]
    means = scores.groupby(KEY, observed=True)["effect"].sum() / len(chosen)
    picked = _pick(means, plan.audit_nodes)
    steps = found.record.get("steps_used") or {}
    groups = [g for g in found.prompts.groups(len(chosen)) if set(g.indices) & set(chosen)]
    exact: dict[str, list[pd.DataFrame]] = {"own": [], "single": []}
    sums: dict[str, Any] = {str(site): [0.0, 0.0, 0] for site in sources.sites}
    bar = tqdm(total=len(chosen), desc="audit", unit="pair", disable=not progress)
    with bar:
        for group in groups:
            part = _those(group, set(chosen))
            _check_batch(model, sources, plan, part, picked, scores, steps, exact, sums)
            bar.update(len(part.indices))
    table = picked
    for name, parts in exact.items():
        every: Any = pd.concat(parts)
        mean = every.groupby(KEY, observed=True)["effect"].sum() / len(chosen)
        table = table.join(mean.rename(name))
    table = table.fillna({"own": 0.0, "single": 0.0}).reset_index()
    return _summary(table, sums, steps, len(chosen))


def _pick(means: Any, k: int) -> pd.DataFrame:
    """The k strongest nodes and k random others, with their estimates."""
    order = means.abs().sort_values(ascending=False)
    top = order.index[:k]
    rest = order.index[k:]
    drawn = np.random.default_rng(0).permutation(len(rest))[:k]
    random = rest[np.sort(drawn)]
    parts = [
        pd.DataFrame({"estimate": means.loc[index], "group": name})
        for name, index in (("top", top), ("random", random))
    ]
    return pd.concat(parts)


def _those(group: PairGroup, wanted: set[int]) -> PairGroup:
    """The wanted pairs of a group."""
    rows = [i for i, index in enumerate(group.indices) if index in wanted]
    return PairGroup(
        tuple(group.indices[i] for i in rows),
        group.clean[rows],
        group.corrupted[rows],
        group.answer[rows],
        group.foil[rows],
    )


def _check_batch(
    model: HookedModel,
    sources: Sources,
    plan: Plan,
    group: PairGroup,
    picked: pd.DataFrame,
    scores: Any,
    steps: dict[str, int],
    exact: dict[str, list[pd.DataFrame]],
    sums: dict[str, Any],
) -> None:
    batch = Batch(model, sources, group, plan.metric, plan.direction)
    wanted: dict[tuple[str, str], set[tuple[int, int]]] = {}
    for site, role, position, latent in picked.index:
        wanted.setdefault((site, role), set()).add((int(position), int(latent)))
    items = []
    for site in sources.sites:
        for block in batch.nodes(site):
            places = wanted.get((str(site), block.role))
            nodes = batch.select(block, places) if places else []
            if len(nodes):
                items.append((site, block, nodes))
    singles = exact_effects(batch, items, plan.batch_size)
    for (site, block, nodes), single in zip(items, singles, strict=True):
        own = single
        if plan.method == "ig":
            clean, corrupted = batch.suffixes(site)
            own = path_effects(
                model,
                batch.baseline,
                site,
                block,
                nodes,
                corrupted,
                clean,
                batch.row_metric,
                min(steps[str(site)], _MOST_POINTS),
                plan.batch_size,
            )
        keys = {
            "site": str(site),
            "role": block.role,
            "position": block.position[nodes].cpu().numpy(),
            "latent": block.index[nodes].cpu().numpy(),
        }
        for name, values in (("own", own), ("single", single)):
            exact[name].append(pd.DataFrame({**keys, "effect": values.cpu().numpy()}))
    _completeness(batch, group, scores, sums, plan.batch_size)


def _completeness(
    batch: Batch, group: PairGroup, scores: Any, sums: dict[str, Any], batch_size: int | None
) -> None:
    """Add up, by site, the sum over nodes and the exact effect of the whole site."""
    whole = batch.whole_effects(batch_size)
    mine = scores[scores["pair"].isin(group.indices)]
    by_site = mine.groupby(["site", "pair"], observed=True)["effect"].sum()
    for site, exact in whole.items():
        effect = exact.numpy()
        estimate = np.array([by_site.get((str(site), i), 0.0) for i in group.indices])
        entry = sums[str(site)]
        entry[0] += float(np.abs(estimate - effect).sum())
        entry[1] += float(effect.sum())
        entry[2] += float((estimate - effect).sum())


def _summary(
    table: pd.DataFrame, sums: dict[str, Any], steps: dict[str, int], n_pairs: int
) -> dict[str, Any]:
    found: dict[str, Any] = {"pairs": n_pairs, "nodes": table.to_dict("records")}
    found["path_points"] = {site: min(most, _MOST_POINTS) for site, most in steps.items()}
    for name, ending in (("own", ""), ("single", "_single")):
        both: Any = table[["estimate", name]]
        found[f"spearman{ending}"] = float(both.corr("spearman").iloc[0, 1])
        found[f"pearson{ending}"] = float(both.corr().iloc[0, 1])
        same = np.sign(table["estimate"]) == np.sign(table[name])
        found[f"sign_agreement{ending}"] = float(same.mean())
    missed = np.argsort(-np.abs(table["estimate"].to_numpy() - table["own"].to_numpy()))
    found["misses"] = table.iloc[missed[:5]].to_dict("records")
    found["residuals"] = {
        site: {
            "mean_effect": total / n_pairs,
            "bias": bias / n_pairs,
            "mean_residual": size / n_pairs,
        }
        for site, (size, total, bias) in sums.items()
    }
    largest = max(abs(entry[1]) for entry in sums.values()) or float("nan")
    found["completeness_residual"] = max(entry[0] for entry in sums.values()) / largest
    return found
