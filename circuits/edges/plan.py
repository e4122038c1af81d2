"""What may be asked for, checked before any pass is run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, get_args

from jaxtyping import Int
from torch import Tensor

from circuits.attribute.batch import Sources
from circuits.errors import CircuitsError
from circuits.graph import Node
from circuits.graph.circuit import NodeRole
from circuits.models.hooked import HookedModel
from circuits.saes import SaeSet
from circuits.sites import Site, forward_order

Gates = Literal["secant", "local"]
ROLES: tuple[NodeRole, ...] = get_args(NodeRole)


class EdgeError(CircuitsError):
    """Edges that cannot be asked for."""


def check_options(gates: str, **numbers: int | None) -> Gates:
    """The gates; raises `EdgeError` for unknown ones and for numbers below 1 (None is allowed)."""
    if gates not in get_args(Gates):
        raise EdgeError(f"unknown gates {gates!r}: expected {', '.join(get_args(Gates))}.")
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise EdgeError(f"{name} {number} must be at least 1.")
    return "local" if gates == "local" else "secant"


def check_sources(model: HookedModel, sources: Sources) -> tuple[tuple[Site, ...], SaeSet]:
    """(sites in forward order, their SAEs); raises `EdgeError` and `SiteError`."""
    if sources.saes is None:
        raise EdgeError("edges are between the nodes of SAEs: give some.")
    if not sources.errors:
        raise EdgeError(
            "edges are those of the model as it is: attribute with the SAEs' errors kept."
        )
    sites = forward_order(sources.sites)
    for site in sites:
        model.require(site.kind)
    return sites, sources.saes


def check_thoughts(model: HookedModel, tokens: Int[Tensor, "pair position"], summed: bool) -> None:
    """Raise `EdgeError` for nodes that stand for all positions (summed) of prompts whose thoughts
    are made while the model runs: such a node would act on itself through them, and on nodes that
    act on it."""
    if summed and model.thinks(tokens) == "rerolled":
        raise EdgeError(
            "through thoughts that are made while the model runs, nodes act on later positions of "
            "their own site: ask for nodes with positions, or hold the thoughts with "
            '`model.thinking("frozen")` (--thoughts frozen).'
        )


def check_nodes(saes: SaeSet, sites: Sequence[Site], nodes: Collection[Node], length: int) -> bool:
    """Whether nodes stand for all positions together; raises `EdgeError` for one that cannot be.

    length: tokens of the shortest prompt.
    """
    summed = {node.position is None for node in nodes}
    if len(summed) > 1:
        raise EdgeError(
            "some nodes have a position and some stand for all of them: ask for one kind at a time."
        )
    for node in nodes:
        problem = _problem(saes, sites, node, length)
        if problem:
            raise EdgeError(f"{node}: {problem}.")
    return summed == {True}


def _problem(saes: SaeSet, sites: Sequence[Site], node: Node, length: int) -> str | None:
    if node.role not in ROLES:
        return f"unknown role {node.role!r}, expected {', '.join(ROLES)}"
    if node.site not in sites:
        return f"there is no SAE there, only at {', '.join(map(str, sites))}"
    known = saes.sources[node.site].d_sae
    lowest, most = (0, known - 1) if node.role == "latent" else (-1, -1)
    problem = None
    if not lowest <= node.latent <= most:
        problem = f"latent {node.latent}, expected {lowest} to {most} for this role and SAE"
    elif node.position is not None and not 0 <= node.position < length:
        problem = f"the shortest prompt has positions 0 to {length - 1}"
    elif node.position == 0 and node.role != "error":
        problem = "at position 0, where SAEs are not used, everything is error"
    elif node.role == "offset" and not saes[node.site].normalises:
        problem = "this SAE does not normalise its input: its offset is the same in all runs"
    return problem
