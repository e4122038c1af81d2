"""The only file that knows how TransformerLens models are built and called.

`BridgeAdapter` is for `TransformerBridge`, `TransformerAdapter` for `HookedTransformer`; both offer
the few things that `HookedModel` needs: where the hook points are, one forward, one forward that
keeps keys and values, and one forward that starts at a layer with a prefix already computed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from circuits.errors import CircuitsError
from circuits.models.hooks import HookSet
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
        self, tokens: Int[Tensor, "row position"]
    ) -> Float[Tensor, "row position vocab"]:
        """Logits at every position."""
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
        """Run positions behind those in `cache`: the final norm's output at each of them, and
        logits at the last one or, with `every`, at each."""
        ...

    def kept(self, cache: Any) -> KeysValues:
        """Keys and values of every layer in `cache`."""
        ...

    def cut(self, keys_values: KeysValues, length: int, rows: Tensor) -> KeysValues:
        """Keys and values of some rows at the first `length` positions."""
        ...


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
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}

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
        return _pattern(self.module.get_hook_point(f"blocks.{layer}.attn.hook_pattern"), layer)

    def embedding(self) -> nn.Module:
        point = self.module.get_hook_point("embed.hook_out")
        if point is None:
            raise SiteError(f"{type(self._hf).__name__} has no embedding hook.")
        return point

    def forward(self, tokens: Int[Tensor, "row position"]) -> Float[Tensor, "row vocab"]:
        return self._last_logits(input_ids=tokens, use_cache=False).logits[:, -1]

    def _last_logits(self, **arguments: Any) -> Any:
        # The last position of every row is a strided slice, for which torch multiplies row by row
        # with the whole unembedding matrix (15 times slower); a contiguous copy is one product.
        with HookSet() as hooks:
            hooks.on_input(self._unembedding, "unembedding", Tensor.contiguous)
            return self._hf(**arguments, **self._last_only)

    def forward_all(
        self, tokens: Int[Tensor, "row position"]
    ) -> Float[Tensor, "row position vocab"]:
        return self._hf(input_ids=tokens, use_cache=False).logits

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


def _pattern(point: nn.Module | None, layer: int) -> nn.Module:
    if point is None:
        raise SiteError(f"this model has no attention pattern of layer {layer}.")
    return point


class _PrefixEntry:
    """What `HookedTransformer` asks of a cache entry, with a fixed prefix."""

    def __init__(self, prefix: Prefix, layer: int) -> None:
        self._prefix, self._layer = prefix, layer
        # Only its size along positions is read.
        self.past_keys = prefix.keys_values[layer][0][:, : prefix.length]

    def append(self, new_keys: Tensor, new_values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values with the prefix in front; [row, position, head, d_head]."""
        return (
            self._prefix.extended(self._layer, new_keys, 0, 1),
            self._prefix.extended(self._layer, new_values, 1, 1),
        )


class TransformerAdapter:
    """A `HookedTransformer`."""

    def __init__(self, model: Any) -> None:
        self.module: Any = model
        cfg = model.cfg
        if cfg.positional_embedding_type == "shortformer":
            raise ModelError("shortformer position embeddings are not supported.")
        self.n_layers, self.n_heads = int(cfg.n_layers), int(cfg.n_heads)
        self.d_model, self.d_head = int(cfg.d_model), int(cfg.d_head)
        self.d_mlp, self.n_ctx = int(cfg.d_mlp or 0), int(cfg.n_ctx)
        self.n_key_value_heads = int(cfg.n_key_value_heads or cfg.n_heads)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.module.blocks)

    def hook_point(self, site: Site) -> nn.Module:
        if site.layer >= self.n_layers:
            raise SiteError(f"{site}: the model has layers 0 to {self.n_layers - 1}.")
        point, cfg = self.module.hook_dict.get(site.hook_name), self.module.cfg
        # These two are made although nothing goes through them.
        idle = (site.kind == "resid_mid" and cfg.parallel_attn_mlp) or (
            site.kind == "mlp_out" and cfg.attn_only
        )
        if point is None or idle:
            raise SiteError(f"this HookedTransformer has no {site.kind}; use another site.")
        return point

    def pattern_point(self, layer: int) -> nn.Module:
        return _pattern(self.module.hook_dict.get(f"blocks.{layer}.attn.hook_pattern"), layer)

    def embedding(self) -> nn.Module:
        return self.module.hook_embed

    def _unembed(self, residual: Tensor) -> Tensor:
        cfg = self.module.cfg
        if cfg.normalization_type is not None:
            residual = self.module.ln_final(residual)
        return self._logits(residual)

    def _logits(self, normed: Tensor) -> Tensor:
        cfg = self.module.cfg
        logits = self.module.unembed(normed)
        cap = cfg.output_logits_soft_cap
        return cap * torch.tanh(logits / cap) if cap > 0 else logits

    def _last_logits(self, *args: Any, **kwargs: Any) -> Float[Tensor, "row vocab"]:
        residual = self.module(*args, stop_at_layer=self.n_layers, **kwargs)
        return self._unembed(residual[:, -1:])[:, -1]

    def forward(self, tokens: Int[Tensor, "row position"]) -> Float[Tensor, "row vocab"]:
        return self._last_logits(tokens)

    def forward_all(
        self, tokens: Int[Tensor, "row position"]
    ) -> Float[Tensor, "row position vocab"]:
        return self._unembed(self.module(tokens, stop_at_layer=self.n_layers))

    def forward_keeping(
        self, tokens: Int[Tensor, "row position"]
    ) -> tuple[Float[Tensor, "row vocab"], KeysValues]:
        cache = self.new_cache(len(tokens))
        # Given outright, because it is otherwise looked up with a tokenizer. Nothing is padded.
        mask = torch.ones_like(tokens)
        logits = self._last_logits(tokens, past_kv_cache=cache, attention_mask=mask)
        return logits, self.kept(cache)

    def new_cache(self, rows: int, before: KeysValues | None = None) -> Any:
        from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

        cfg = self.module.cfg
        cache = TransformerLensKeyValueCache.init_cache(cfg, cfg.device, rows)
        for entry, (keys, values) in zip(cache.entries, before or [], strict=False):
            entry.past_keys, entry.past_values = keys, values
        length = cache.entries[0].past_keys.shape[1]
        ones = torch.ones(rows, length, dtype=torch.long, device=self.module.cfg.device)
        cache.previous_attention_mask = ones
        return cache

    def step(
        self, tokens: Int[Tensor, "row position"], cache: Any, every: bool = False
    ) -> tuple[Float[Tensor, "row position d_model"], Float[Tensor, "row some vocab"]]:
        mask = torch.ones_like(tokens)
        residual = self.module(
            tokens, stop_at_layer=self.n_layers, past_kv_cache=cache, attention_mask=mask
        )
        if self.module.cfg.normalization_type is None:
            raise ModelError("a model without a final norm has no thoughts.")
        hidden = self.module.ln_final(residual)
        return hidden, self._logits(hidden if every else hidden[:, -1:])

    def kept(self, cache: Any) -> KeysValues:
        return [(entry.past_keys, entry.past_values) for entry in cache.entries]

    def cut(self, keys_values: KeysValues, length: int, rows: Tensor) -> KeysValues:
        return [(k[rows, :length], v[rows, :length]) for k, v in keys_values]

    def forward_from(
        self, layer: int, suffix: Int[Tensor, "one position"], prefix: Prefix
    ) -> Float[Tensor, "row vocab"]:
        entries = [_PrefixEntry(prefix, i) for i in range(self.n_layers)]
        width = (1, suffix.shape[1], self.d_model)
        parameter = next(self.module.parameters())
        placeholder = torch.zeros(width, device=parameter.device, dtype=parameter.dtype)
        return self._last_logits(placeholder, start_at_layer=layer, past_kv_cache=entries)


def make_adapter(model: Any) -> Adapter:
    """The adapter for a TransformerLens model; raises `ModelError` for anything else."""
    from transformer_lens import HookedTransformer
    from transformer_lens.model_bridge import TransformerBridge

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
