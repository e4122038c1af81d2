"""What the toolkit needs of a TransformerLens model, in one interface.

`BridgeAdapter` (bridge.py) is for `TransformerBridge`, `TransformerAdapter` (transformer.py) for
`HookedTransformer`: the only files that know how these are built and called. Both offer
the few things that `HookedModel` needs: where the hook points are, one forward, one forward that
keeps keys and values, and one forward that starts at a layer with a prefix already computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuits.errors import CircuitsError
from circuits.sites import Site, SiteError

KeysValues = list[tuple[Tensor, Tensor]]  # one pair a layer, in the library's own layout


class ModelError(CircuitsError):
    """A model that cannot be loaded, or cannot do what is asked of it."""


@dataclass(frozen=True)
class Prefix:
    """Keys and values of the tokens before the ones that are run.

    keys_values: per layer, batch first; length: how many positions of them are the prefix.
    rows: per layer, which batch entry each row of the pass at that layer belongs to.
    """

    keys_values: KeysValues
    length: int
    rows: list[Tensor]  # of growing length: rows join on the way up

    def extended(self, layer: int, new: Tensor, which: int, axis: int) -> Tensor:
        """Keys (which=0) or values (which=1) of prefix and `new` together, rows as in `new`."""
        old = self.keys_values[layer][which].narrow(axis, 0, self.length)
        rows = self.rows[layer]
        # One prompt is only viewed again for each row; several are gathered.
        old = old.expand(new.shape[0], *old.shape[1:]) if old.shape[0] == 1 else old[rows]
        return torch.cat([old, new], dim=axis)


@runtime_checkable
class Adapter(Protocol):
    """One interface over both kinds of TransformerLens model."""

    n_layers: int
    n_heads: int
    d_head: int
    d_model: int
    d_mlp: int
    n_key_value_heads: int
    n_ctx: int  # most tokens of a prompt
    module: nn.Module

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The layers, called in order with the hidden state first."""
        ...

    def hook_point(self, site: Site) -> nn.Module:
        """The module whose output is the tensor at `site`; raises `SiteError` if there is none."""
        ...

    def pattern_point(self, layer: int) -> nn.Module:
        """The module whose output is a layer's attention pattern; raises `SiteError` if none is."""
        ...

    def embedding(self) -> nn.Module:
        """The module whose output is the token embedding, before position embeddings."""
        ...

    def forward(self, tokens: Int[Tensor, "row position"]) -> Float[Tensor, "row vocab"]:
        """Logits at the last position."""
        ...

    def forward_all(
        self, tokens: Int[Tensor, "row position"], last: int | None = None
    ) -> Float[Tensor, "row some vocab"]:
        """Logits at every position, or at so many of the last ones."""
        ...

    def forward_keeping(
        self, tokens: Int[Tensor, "row position"]
    ) -> tuple[Float[Tensor, "row vocab"], KeysValues]:
        """Logits at the last position, and every layer's keys and values."""
        ...

    def forward_from(
        self, layer: int, suffix: Int[Tensor, "one position"], prefix: Prefix
    ) -> Float[Tensor, "row vocab"]:
        """Logits at the last position with layers below `layer` left out.

        The hidden state that enters `layer` is put in by a hook on `blocks[layer]`, and with it the
        number of rows; `suffix` has one row and only tells how many positions there are.
        """
        ...

    def new_cache(self, rows: int, before: KeysValues | None = None) -> Any:
        """A cache of keys and values that `step` reads and lengthens.

        before: keys and values of the positions that are known, one entry a row.
        """
        ...

    def step(
        self, tokens: Int[Tensor, "row position"], cache: Any, every: bool = False
    ) -> tuple[Float[Tensor, "row position d_model"], Float[Tensor, "row some vocab"]]:
        """Run positions behind those in `cache`: the final norm's output (the stream in a model
        without one) at each of them, and logits at the last one or, with `every`, at each."""
        ...

    def kept(self, cache: Any) -> KeysValues:
        """Keys and values of every layer in `cache`."""
        ...

    def cut(self, keys_values: KeysValues, length: int, rows: Tensor) -> KeysValues:
        """Keys and values of some rows at the first `length` positions."""
        ...


def named_pattern(point: nn.Module | None, layer: int) -> nn.Module:
    if point is None:
        raise SiteError(f"this model has no attention pattern of layer {layer}.")
    return point


def make_adapter(model: Any) -> Adapter:
    """The adapter for a TransformerLens model; raises `ModelError` for anything else."""
    from transformer_lens import HookedTransformer
    from transformer_lens.model_bridge import TransformerBridge

    from circuits.models.bridge import BridgeAdapter
    from circuits.models.transformer import TransformerAdapter

    makers: list[tuple[type, Callable[[Any], Adapter]]] = [
        (TransformerBridge, BridgeAdapter),
        (HookedTransformer, TransformerAdapter),
    ]
    for kind, make in makers:
        if isinstance(model, kind):
            return make(model)
    raise ModelError(
        f"expected a TransformerBridge or a HookedTransformer, got {type(model).__name__}: give "
        "Hugging Face models to load_model together with their tokenizer."
    )
