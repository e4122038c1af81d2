"""Many small changes to one run, each computed from where it begins to matter.

Given the `Baseline` of some prompts (their residual stream, keys and values), a *row* is one of the
prompts with some patches. What a row must compute is small:

1. positions before its first patched one are as in the baseline: their keys and values are taken
   from there;
2. layers below its first patched one are as in the baseline: the row enters the pass at that layer
   with the baseline's residual stream;
3. only the last position is unembedded.

Rows that begin at different layers share one pass: it starts at the lowest of those layers with the
rows that begin there, and at each further layer the rows that begin there join the batch. Rows are
put into passes by the position they begin at, so that late positions compute short suffixes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.models.adapters import Adapter, KeysValues, Prefix
from circuits.models.hooks import HookSet
from circuits.models.patches import Patches
from circuits.sites import Site
from circuits.task import Inputs

# Passes whose layers would see fewer tokens than this on average are joined with their neighbours:
# a longer suffix then costs less than another pass of small products.
_SMALLEST_PASS = 256


@dataclass(frozen=True)
class Baseline:
    """A run to change: everything a resumed pass needs of it.

    inputs: the prompts. first: the first position that may be patched.
    resid_pre: per layer, the stream from `first` on, [pair, position - first, d_model].
    keys_values: per layer, at all positions, in the library's own layout.
    logits: at the last position.
    thoughts: what stood at the slots, where the run made its own embeddings.
    """

    inputs: Inputs
    first: int
    resid_pre: list[Float[Tensor, "pair suffix d_model"]]
    keys_values: KeysValues
    logits: Float[Tensor, "pair vocab"]
    thoughts: Float[Tensor, "pair slot d_model"] | None = None

    @property
    def length(self) -> int:
        """How many positions the prompts have."""
        return self.inputs.tokens.shape[1]


@dataclass(frozen=True)
class Pass:
    """Rows that are computed together. `rows` are ordered by the layer they enter at."""

    start: int
    rows: Int[Tensor, " row"]
    layers: Int[Tensor, " row"]


def earliest(site: Site, n_layers: int) -> Site:
    """resid_post as resid_pre of the next layer where there is one: one layer less to run."""
    if site.kind == "resid_post" and site.layer + 1 < n_layers:
        return Site(site.layer + 1, "resid_pre")
    return site


def normalise(patches: Sequence[Patches], n_layers: int) -> list[Patches]:
    """The same patches at the `earliest` name of their site."""
    return [replace(p, site=earliest(p.site, n_layers)) for p in patches]


def beginnings(
    patches: Sequence[Patches], n_rows: int, length: int, n_layers: int
) -> tuple[Int[Tensor, " row"], Int[Tensor, " row"]]:
    """(layer, position) of every row's first patch; (n_layers, length) for rows without."""
    layer = torch.full((n_rows,), n_layers)
    start = torch.full((n_rows,), length)
    for patch in patches:
        at = torch.full_like(patch.rows, patch.site.layer).cpu()
        layer.scatter_reduce_(0, patch.rows.cpu(), at, "amin")
        start.scatter_reduce_(0, patch.rows.cpu(), patch.positions.cpu(), "amin")
    return layer, start


def plan(
    layer: Int[Tensor, " row"],
    start: Int[Tensor, " row"],
    length: int,
    n_layers: int,
    pieces: int = 1,
) -> list[Pass]:
    """Order rows into passes; every row that begins before position `length` is in exactly one.

    layer, start: where each row begins to differ from the baseline. pieces: into how many a pass is
        cut by thoughts; each of them is a pass of its own in what it costs beyond its products.
    """
    passes: list[Pass] = []
    waiting: list[Tensor] = []
    first, mean_tokens = 0, 0.0
    starts = start.unique().tolist()
    for i, at in enumerate(starts):
        if at == length:
            continue  # rows without patches
        rows = (start == at).nonzero().squeeze(1)
        if not waiting:
            first, mean_tokens = at, 0.0
        waiting.append(rows)
        share = float((n_layers - layer[rows]).float().mean()) / n_layers
        mean_tokens += len(rows) * share * (length - first)
        last = i + 1 == len(starts) or starts[i + 1] == length
        if mean_tokens >= _SMALLEST_PASS * pieces or last:
            together = torch.cat(waiting)
            order = layer[together].argsort(stable=True)
            passes.append(Pass(first, together[order], layer[together[order]]))
            waiting = []
    return passes


def split(one: Pass, size: int) -> Iterator[Pass]:
    """Cut a pass into ones of at most `size` rows; later ones begin at later layers."""
    for rows, layers in zip(one.rows.split(size), one.layers.split(size), strict=True):
        yield Pass(one.start, rows, layers)


def run_pass(
    adapter: Adapter,
    baseline: Baseline,
    pairs: Int[Tensor, " row"],
    one: Pass,
    change: Callable[[HookSet], None],
) -> Float[Tensor, "part vocab"]:
    """Logits at the last position of the rows of one pass, in its order.

    pairs: for every row there is (not only this pass), its entry in the baseline.
    change: registers what is done to the rows; a hook at layer l sees those that entered at l or
        below, in the pass's order.
    """
    device = baseline.logits.device
    lowest = int(one.layers[0])
    joined = torch.searchsorted(one.layers, torch.arange(adapter.n_layers), right=True).tolist()
    mine = pairs[one.rows.to(pairs.device)].to(device)
    prefix = Prefix(baseline.keys_values, one.start, [mine[:n] for n in joined])
    offset = one.start - baseline.first
    with HookSet() as hooks:
        for layer in range(lowest, adapter.n_layers):
            before = joined[layer - 1] if layer > lowest else 0
            if joined[layer] == before:
                continue
            entering = baseline.resid_pre[layer][mine[before : joined[layer]], offset:]
            hooks.on_input(
                adapter.blocks[layer], f"entry of layer {layer}", _joining(entering, before == 0)
            )
        change(hooks)
        suffix = baseline.inputs.tokens[:1, one.start :]
        return adapter.forward_from(lowest, suffix, prefix)


class _joining:
    """Puts rows at the end of the batch; the first ones replace the placeholder."""

    def __init__(self, entering: Tensor, first: bool) -> None:
        self._entering, self._first = entering, first

    def __call__(self, hidden: Tensor) -> Tensor:
        if self._first:
            return self._entering
        return torch.cat([hidden, self._entering.to(hidden.device)])
