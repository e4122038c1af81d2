"""A circuit that was found before, on other pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from circuits.circuit.evaluate import Places, Shares, metrics_of
from circuits.circuit.judge import CIRCUIT, COMPLEMENT, ERRORS_IN, ERRORS_OUT, varied
from circuits.circuit.references import REFERENCES, CircuitError, check_references
from circuits.circuit.selections import NodeTable, Selections
from circuits.graph import Circuit
from circuits.metrics import find_metric
from circuits.models.hooked import HookedModel
from circuits.patch.ability import baselines
from circuits.patch.draw import thinks
from circuits.prompts import PromptPairs
from circuits.saes import SaeSet

_VARIANTS = {
    "faithfulness": CIRCUIT,
    "completeness": COMPLEMENT,
    "errors_out": ERRORS_OUT,
    "errors_in": ERRORS_IN,
}


@dataclass(frozen=True, eq=False)
class Applied:
    """table: one row a reference, `reference, faithfulness, completeness, errors_out, errors_in`
    with intervals (`_low`, `_high`) and `problem` where there is no ratio. m: [variant and nothing,
    reference, pair]; whole: m(M), [pair]. carried: the share of nodes that have a place in the
    prompts, mean over pairs."""

    table: pd.DataFrame
    m: np.ndarray
    whole: np.ndarray
    carried: float


def apply_circuit(
    model: HookedModel,
    circuit: Circuit,
    pairs: PromptPairs,
    *,
    saes: SaeSet,
    references: Sequence[str] = REFERENCES,
    batch_size: int | None = None,
    progress: bool = True,
) -> Applied:
    """What a circuit is worth on pairs: of its own template position by position, of others by
    named position, summed over positions anywhere.

    saes: those it was found with, at all of its sites. Raises `CircuitError` when SAEs are missing
    or others, or when the model is another one.
    """
    named = check_references(references)
    _check(model, circuit, saes, pairs)
    table = NodeTable.of([one.node for one in circuit.nodes], circuit.sites)
    inside = np.ones((1, len(table)), dtype=bool)
    itself = Selections.of(table, inside)
    parts = [varied(itself, variant) for variant in _VARIANTS.values()]
    chosen = Selections.join([*parts, Selections.of(table, ~inside)])
    places = Places.of(circuit)
    _, metric = find_metric(str(circuit.record.get("metric", "logit_difference")))
    m, whole = metrics_of(
        model,
        saes,
        pairs,
        chosen,
        places,
        named,
        metric=metric,
        batch_size=batch_size,
        progress=f"circuit of {len(table)} nodes" if progress else None,
    )
    base = baselines(model, pairs, metric)
    gap = base.clean_metric - base.corrupted_metric
    rows = []
    for number, reference in enumerate(named):
        shares = Shares(m[:-1, number], m[-1, number], whole, gap)
        found = shares.summary()
        row: dict[str, Any] = {"reference": reference, "problem": shares.problem or ""}
        for i, name in enumerate(_VARIANTS):
            row |= {
                name: found.value[i],
                f"{name}_low": found.low[i],
                f"{name}_high": found.high[i],
            }
        rows.append(row)
    return Applied(pd.DataFrame(rows), m, whole, places.carried(table.position, pairs))


def _check(model: HookedModel, circuit: Circuit, saes: SaeSet, pairs: PromptPairs) -> None:
    record = circuit.record
    if not len(circuit):
        raise CircuitError("this circuit has no nodes.")
    if record.get("model_sha256") and record["model_sha256"] != model.sha256:
        raise CircuitError(
            f"the circuit was found in {record.get('model')}, this is {model.name}: load that one."
        )
    how = thinks(model, pairs)
    if record.get("thoughts") != how:
        raise CircuitError(
            f"the circuit was found with thoughts {record.get('thoughts')}, now they are {how}: "
            "use `model.thinking` (--thoughts), and a model and pairs that have them."
        )
    missing = [str(site) for site in circuit.sites if site not in saes.sources]
    if missing:
        raise CircuitError(
            f"the circuit has been found with SAEs at {', '.join(missing)} too: give all of them."
        )
    known = {one["site"]: one.get("sha256") for one in record.get("saes") or []}
    for site in circuit.sites:
        digest = saes.describe(site)["sha256"]
        if digest and known.get(str(site)) and known[str(site)] != digest:
            raise CircuitError(
                f"the SAE at {site} has other weights than the one the circuit was found with: its "
                "latents would be others."
            )
