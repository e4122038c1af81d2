"""The options of an attribution, checked before any pass is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from circuits.attribute.batch import Direction, Sources
from circuits.errors import CircuitsError
from circuits.metrics import Metric, find_metric
from circuits.models.hooked import HookedModel
from circuits.saes import SaeSet
from circuits.sites import Site, SiteKind

Method = Literal["atp", "ig", "exact"]
STEPS, MOST_STEPS = 5, 80  # of the Gauss-Legendre rule
TOLERANCE = 0.01  # of the largest whole-site effect, by which sums over nodes may miss
_COMPONENTS: tuple[SiteKind, ...] = ("z", "attn_out", "mlp_out")


class AttributionError(CircuitsError):
    """Options of an attribution that contradict each other or the model."""


@dataclass(frozen=True)
class Plan:
    """A checked set of options. steps, tolerance: of integrated gradients."""

    method: Method
    steps: int
    tolerance: float
    direction: Direction
    metric_name: str
    metric: Metric
    batch_size: int | None
    audit_pairs: int
    audit_nodes: int


def make_plan(
    method: str,
    steps: int,
    tolerance: float | int,
    direction: str,
    metric: str | Metric,
    batch_size: int | None,
    audit_pairs: int,
    audit_nodes: int,
) -> Plan:
    """Check the options; raises `AttributionError` and, for metrics, `MetricError`."""
    for name, value, known in (
        ("method", method, get_args(Method)),
        ("direction", direction, get_args(Direction)),
    ):
        if value not in known:
            raise AttributionError(f"unknown {name} {value!r}: expected {', '.join(known)}.")
    name, function = find_metric(metric)
    if (method, direction, name) == ("atp", "noising", "minus_kl_to_clean"):
        raise AttributionError(
            "the divergence from the clean run is at its best in the clean run, so that its slope "
            "there is 0 and atp would find nothing: use ig or exact, or denoising."
        )
    if steps < 1:
        raise AttributionError(f"{steps} steps: integrated gradients need at least 1.")
    if not 0 <= tolerance < 1:
        raise AttributionError(f"tolerance {tolerance}: expected a share from 0 to below 1.")
    if batch_size is not None and batch_size < 1:
        raise AttributionError(f"batch_size {batch_size} must be at least 1.")
    if audit_pairs < 0 or audit_nodes < 1:
        raise AttributionError("an audit needs 0 or more pairs and at least 1 node.")
    chosen: Any = method
    return Plan(
        chosen,
        steps,
        float(tolerance),
        "noising" if direction == "noising" else "denoising",
        name,
        function,
        batch_size,
        audit_pairs,
        audit_nodes,
    )


def choose_sources(
    model: HookedModel, saes: SaeSet | None, sites: Sequence[Site] | None, errors: str
) -> Sources:
    """What is attributed to; raises `AttributionError` and `SiteError` where the model or the SAEs
    have no such thing."""
    if errors not in ("kept", "removed"):
        raise AttributionError(f"unknown errors {errors!r}: expected kept or removed.")
    if errors == "removed" and saes is None:
        raise AttributionError("errors are those of SAEs: without any, there are none to remove.")
    kept = errors == "kept"
    if saes is not None and sites is not None:
        missing = [str(site) for site in sites if site not in saes.sources]
        if missing:
            raise AttributionError(f"there are no SAEs at {', '.join(missing)}.")
        return _of_saes(tuple(sites), saes, kept)
    if saes is not None:
        if not len(saes):
            raise AttributionError("there are no SAEs: without any, leave them out.")
        return _of_saes(tuple(saes), saes, kept)
    chosen = sites or [Site(layer, kind) for layer in range(model.n_layers) for kind in _COMPONENTS]
    for site in chosen:
        model.require(site.kind)
        model.adapter.hook_point(site)
    return Sources(tuple(dict.fromkeys(chosen)), None)


def _of_saes(sites: tuple[Site, ...], saes: SaeSet, kept: bool) -> Sources:
    """Without errors, reconstructions must not stand in one another's way."""
    if kept:
        return Sources(sites, saes, True)
    middle = [str(site) for site in sites if site.kind == "resid_mid"]
    if middle:
        raise AttributionError(
            f"errors cannot be removed at {', '.join(middle)}: that stream is changed through "
            "attn_out, before it is read. Choose other sites."
        )
    same = [
        f"{site} and resid_pre.{site.layer + 1}"
        for site in sites
        if site.kind == "resid_post" and Site(site.layer + 1, "resid_pre") in sites
    ]
    if same:
        raise AttributionError(
            f"{', '.join(same)} are the same activation with two SAEs: without errors one would "
            "undo the other. Choose one of them."
        )
    return Sources(sites, saes, False)
