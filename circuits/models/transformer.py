"""A `HookedTransformer` as an `Adapter`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuits.models.adapters import KeysValues, ModelError, Prefix, named_pattern
from circuits.sites import Site, SiteError


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
        return named_pattern(self.module.hook_dict.get(f"blocks.{layer}.attn.hook_pattern"), layer)

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
        self, tokens: Int[Tensor, "row position"], last: int | None = None
    ) -> Float[Tensor, "row some vocab"]:
        residual = self.module(tokens, stop_at_layer=self.n_layers)
        return self._unembed(residual if last is None else residual[:, -last:])

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
        normed = self.module.cfg.normalization_type is not None  # else the stream itself is read
        hidden = self.module.ln_final(residual) if normed else residual
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
