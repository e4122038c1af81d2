"""A `TransformerBridge` as an `Adapter`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from circuits.models.adapters import KeysValues, ModelError, Prefix, named_pattern
from circuits.models.hooks import HookSet
from circuits.sites import Site, SiteError


class _PrefixLayer(CacheLayerMixin):
    """A cache layer that puts a fixed prefix before what it is given, and stores nothing."""

    is_sliding = False  # the mask is made for the whole prefix; a window is applied by that mask

    def __init__(self, prefix: Prefix, layer: int) -> None:
        super().__init__()
        self._prefix, self._layer = prefix, layer
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values with the prefix in front; [row, head, position, d_head]."""
        return (
            self._prefix.extended(self._layer, key_states, 0, 2),
            self._prefix.extended(self._layer, value_states, 1, 2),
        )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(length of keys, offset of the first one)."""
        return self._prefix.length + query_length, 0

    def get_seq_length(self) -> int:
        """The prefix is what has been seen."""
        return self._prefix.length

    def get_max_length(self) -> int:
        """No bound."""
        return -1


class _Skip(nn.Module):
    """Stands in for a layer that need not be computed, with the return type of that layer."""

    def __init__(self, as_tuple: bool) -> None:
        super().__init__()
        self._as_tuple = as_tuple

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (hidden_states,) if self._as_tuple else hidden_states


class BridgeAdapter:
    """A `TransformerBridge` around a Hugging Face decoder-only model."""

    def __init__(self, bridge: Any) -> None:
        self.module: Any = bridge
        self._hf: Any = bridge.original_model
        cfg = bridge.cfg
        self.n_layers, self.n_heads = int(cfg.n_layers), int(cfg.n_heads)
        self.d_model, self.d_head = int(cfg.d_model), int(cfg.d_head)
        self.d_mlp = int(getattr(cfg, "d_mlp", None) or 4 * self.d_model)
        self.n_ctx = int(cfg.n_ctx)
        kv_heads = getattr(cfg, "n_key_value_heads", None)
        self.n_key_value_heads = int(kv_heads or self.n_heads)
        self._layers = self._find_layers()
        # Seen in `forward_keeping`, which every resumed pass needs first.
        self._returns_tuple = False
        self._unembedding: nn.Module = self._hf.get_output_embeddings()
        accepted = inspect.signature(self._hf.forward).parameters
        self._keeps = "logits_to_keep" in accepted

    def _find_layers(self) -> nn.ModuleList:
        first = self.module.blocks[0]
        for module in self._hf.modules():
            if isinstance(module, nn.ModuleList) and len(module) and module[0] is first:
                return module
        raise ModelError(
            f"{type(self._hf).__name__} does not keep its layers in one list: only decoder-only "
            "language models can be patched."
        )

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self._layers)

    def hook_point(self, site: Site) -> nn.Module:
        if site.layer >= self.n_layers:
            raise SiteError(f"{site}: the model has layers 0 to {self.n_layers - 1}.")
        # An alias can be absent on the block (parallel attention and MLP have no middle of the
        # residual stream) while a registry entry still resolves: the block decides.
        aliases = getattr(self._layers[site.layer], "hook_aliases", {})
        short = site.hook_name.split(".", 2)[2]
        missing = short.startswith("hook_") and short not in aliases
        point = None if missing else self.module.get_hook_point(site.hook_name)
        if point is None:
            raise SiteError(
                f"this model ({type(self._hf).__name__}) has no {site.kind}"
                + (
                    ": attention and MLP read the same stream in parallel. Use resid_pre, "
                    "attn_out or mlp_out."
                    if site.kind == "resid_mid"
                    else "; use another site."
                )
            )
        return point

    def pattern_point(self, layer: int) -> nn.Module:
        return named_pattern(self.module.get_hook_point(f"blocks.{layer}.attn.hook_pattern"), layer)

    def embedding(self) -> nn.Module:
        point = self.module.get_hook_point("embed.hook_out")
        if point is None:
            raise SiteError(f"{type(self._hf).__name__} has no embedding hook.")
        return point

    def forward(self, tokens: Int[Tensor, "row position"]) -> Float[Tensor, "row vocab"]:
        return self._last_logits(input_ids=tokens, use_cache=False).logits[:, -1]

    def _last_logits(self, count: int = 1, **arguments: Any) -> Any:
        # The last positions of every row are a strided slice, for which torch multiplies row by row
        # with the whole unembedding matrix (15 times slower); a contiguous copy is one product.
        with HookSet() as hooks:
            hooks.on_input(self._unembedding, "unembedding", Tensor.contiguous)
            return self._hf(**arguments, **({"logits_to_keep": count} if self._keeps else {}))

    def forward_all(
        self, tokens: Int[Tensor, "row position"], last: int | None = None
    ) -> Float[Tensor, "row some vocab"]:
        if last is None:
            return self._hf(input_ids=tokens, use_cache=False).logits
        return self._last_logits(last, input_ids=tokens, use_cache=False).logits[:, -last:]

    def forward_keeping(
        self, tokens: Int[Tensor, "row position"]
    ) -> tuple[Float[Tensor, "row vocab"], KeysValues]:
        # Without a config every layer keeps all positions, sliding windows too: the window is
        # applied again, by the mask, when the pass is resumed.
        cache = DynamicCache()

        def look(module: nn.Module, args: Any, output: Any) -> None:
            self._returns_tuple = isinstance(output, tuple)

        handle = self._layers[0].register_forward_hook(look)
        try:
            output = self._last_logits(input_ids=tokens, past_key_values=cache, use_cache=True)
        finally:
            handle.remove()
        return output.logits[:, -1], self.kept(cache)

    def kept(self, cache: Any) -> KeysValues:
        if len(cache.layers) != self.n_layers:
            raise ModelError(
                f"{type(self._hf).__name__} kept keys and values of {len(cache.layers)} of "
                f"{self.n_layers} layers."
            )
        kept: KeysValues = []
        for layer in cache.layers:
            keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
            if keys is None or values is None:
                raise ModelError(f"{type(self._hf).__name__} has layers without keys and values.")
            kept.append((keys, values))
        return kept

    def new_cache(self, rows: int, before: KeysValues | None = None) -> DynamicCache:
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(before or []):
            cache.update(keys, values, layer)
        return cache

    def step(
        self, tokens: Int[Tensor, "row position"], cache: Any, every: bool = False
    ) -> tuple[Float[Tensor, "row position d_model"], Float[Tensor, "row some vocab"]]:
        hidden: list[Tensor] = []
        with HookSet() as hooks:
            hooks.on_output(self.module.ln_final, "final norm", hidden.append)
            run = self._hf if every else self._last_logits
            output = run(input_ids=tokens, past_key_values=cache, use_cache=True)
        return hidden[0], output.logits if every else output.logits[:, -1:]

    def cut(self, keys_values: KeysValues, length: int, rows: Tensor) -> KeysValues:
        return [(k[rows, :, :length], v[rows, :, :length]) for k, v in keys_values]

    def forward_from(
        self, layer: int, suffix: Int[Tensor, "one position"], prefix: Prefix
    ) -> Float[Tensor, "row vocab"]:
        cache = Cache(layers=[_PrefixLayer(prefix, i) for i in range(self.n_layers)])
        with self._skipping(layer):
            output = self._last_logits(input_ids=suffix, past_key_values=cache, use_cache=True)
        return output.logits[:, -1]

    @contextmanager
    def _skipping(self, below: int) -> Iterator[None]:
        """Replace the layers below `below`: slicing the list would shift layer types and cache
        indices of those that stay."""
        originals = [self._layers[i] for i in range(below)]
        try:
            for i in range(below):
                self._layers[i] = _Skip(self._returns_tuple)
            yield
        finally:
            for i, original in enumerate(originals):
                self._layers[i] = original
