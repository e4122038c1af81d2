"""Writing with interventions, and reading given tokens with them.

A prompt of P tokens is run once and its keys and values kept; then one position at a time. Step s
is the choice of generated token s, made at position P - 1 + s: its logits and the activations
recorded for it are those of that position, so step 0 belongs to the prompt's last token. Edits see
every position once, when it is computed, and what later positions attend to is the changed one: an
intervention is persistent without being applied again.

Rows are computed side by side and keep their place until the last of them has ended, because a row
of a smaller batch can differ in the last bit. Runs of the same shape then give the same numbers bit
for bit wherever nothing was changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.models.adapters import ModelError
from circuits.models.edits import FLAT, Edit
from circuits.models.hooked import HookedModel
from circuits.models.hooks import HookSet
from circuits.replay.interventions import ReplayError
from circuits.replay.noise import Key, Noise
from circuits.replay.sampling import Sampling, choose
from circuits.sites import Site

AFTER = -1  # stands for a token where a row has ended
_LOGITS_AT_ONCE = 1 << 24  # of given tokens: 64 MiB in float32
_SAMPLING = Sampling()


@dataclass(frozen=True, eq=False)
class Generated:
    """Rows that were written, or read with given tokens; on the CPU.

    tokens: ids; `AFTER` behind a row's end. lengths: steps of each row, the stop token's included.
    stopped: whether it ended with a stop token.
    logprobs: natural logarithm of each token's probability under the model as it ran, at
        temperature 1 and over the whole vocabulary; NaN behind the end.
    top_tokens, top_logprobs: the most probable tokens of every step, best first; `AFTER` and NaN
        behind the end.
    activations: per watched site what leaves it, after its edit, in the model's type. Behind a
        row's end the values mean nothing. `z` has its heads side by side.
    prompt_length: P; step s is made at position P - 1 + s.
    """

    tokens: Int[Tensor, "row step"]
    lengths: Int[Tensor, " row"]
    stopped: Bool[Tensor, " row"]
    logprobs: Float[Tensor, "row step"]
    top_tokens: Int[Tensor, "row step top"]
    top_logprobs: Float[Tensor, "row step top"]
    prompt_length: int
    activations: dict[Site, Float[Tensor, "row _ _"]] = field(default_factory=dict)

    @property
    def inside(self) -> Bool[Tensor, "row step"]:
        """Which steps a row has."""
        return torch.arange(self.tokens.shape[1])[None] < self.lengths[:, None]


@dataclass
class _Record:
    """What is kept step by step."""

    top: int
    logprobs: list[Tensor] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def add(self, logits: Float[Tensor, "row some vocab"], chosen: Int[Tensor, "row some"]) -> None:
        wide = logits.float()
        total = wide.logsumexp(-1, keepdim=True)
        self.logprobs.append((wide.gather(-1, chosen[..., None]) - total)[..., 0])
        best = wide.topk(min(self.top, wide.shape[-1]), dim=-1)
        self.tokens.append(best.indices.to(torch.int32))
        self.values.append(best.values - total)


@torch.no_grad()
def generate(
    model: HookedModel,
    tokens: Int[Tensor, "row position"],
    keys: Sequence[Key],
    *,
    edits: Mapping[Site, Edit] | None = None,
    max_new_tokens: int = 32,
    sampling: Sampling = _SAMPLING,
    seed: int = 0,
    stop: Sequence[int] = (),
    watch: Sequence[Site] = (),
    top: int = 50,
) -> Generated:
    """Continue prompts of one length, with the activations at sites put through `edits`.

    tokens: prompts; rows may repeat one (trials). keys: what tells each row's noise (`keys_of`).
    edits: as `edits_of` makes them, or any functions (x [row, position, width], position of the
        first) -> x.
    max_new_tokens: most steps. stop: ids that end a row; the stop token is its last step.
    watch: sites whose activations are kept. top: how many of the most probable tokens are.

    A prompt that several rows share is run once, unless edits differ by row (`by_row`; functions
    without that attribute may). Raises `ReplayError` for arguments that do not fit together and
    `ModelError` for prompts that leave no room and for models with continuous thoughts.
    """
    edits = edits or {}
    rows, length = tokens.shape
    _check(model, tokens, length + max_new_tokens - 1)
    if len(keys) != rows or max_new_tokens < 1:
        raise ReplayError(
            f"{len(keys)} keys for {rows} rows, {max_new_tokens} new tokens: expected one key a "
            "row and at least one token."
        )
    noise, record = Noise(seed, keys), _Record(top)
    stops = torch.tensor(sorted(set(stop)), dtype=torch.long, device=model.device)
    kept: dict[Site, list[Tensor]] = {site: [] for site in watch}
    logits, cache = _prompt(model, tokens.to(model.device), edits, kept, last=True)
    assert logits is not None
    alive = torch.ones(rows, dtype=torch.bool, device=model.device)
    chosen, lengths = [], torch.zeros(rows, dtype=torch.long, device=model.device)
    for step in range(max_new_tokens):
        token = torch.zeros(rows, dtype=torch.long, device=model.device)
        going = alive.nonzero().squeeze(1)
        token[going] = choose(logits[going, -1], sampling, noise, going, step)
        record.add(logits, token[:, None])
        chosen.append(torch.where(alive, token, AFTER))
        lengths += alive
        alive = alive & ~torch.isin(token, stops)
        if step + 1 == max_new_tokens or not alive.any():
            break
        logits = _piece(model, token[:, None], cache, edits, kept, length + step)
    made = torch.stack(chosen, 1).cpu()
    stopped = ~alive.cpu()
    return _generated(made, lengths.cpu(), stopped, record, length, kept)


@torch.no_grad()
def forced(
    model: HookedModel,
    tokens: Int[Tensor, "row position"],
    prompt_length: int,
    *,
    edits: Mapping[Site, Edit] | None = None,
    watch: Sequence[Site] = (),
    top: int = 50,
) -> Generated:
    """What `generate` would have recorded, had it written these tokens (teacher forcing).

    tokens: prompts of `prompt_length` tokens with what follows them, `AFTER` behind a row's end.

    The prompt is run first and then all further positions together, a few at a time where their
    logits would take much memory. Raises as `generate` does.
    """
    edits = edits or {}
    rows, total = tokens.shape
    if not 1 <= prompt_length < total:
        raise ReplayError(f"prompts of {prompt_length} tokens with {total - prompt_length} more.")
    ended = tokens == AFTER
    inside = ~ended[:, prompt_length:]
    if ended[:, :prompt_length].any() or (inside.int().diff(dim=1) > 0).any():
        raise ReplayError(f"tokens: {AFTER} may stand behind a row's end only.")
    filled = torch.where(ended, 0, tokens).to(model.device)
    _check(model, filled, total - 1)
    kept: dict[Site, list[Tensor]] = {site: [] for site in watch}
    record = _Record(top)
    before = prompt_length - 1
    _, cache = _prompt(model, filled[:, :before], edits, {})
    vocab = int(model.module.cfg.d_vocab)  # pyright: ignore
    for piece in torch.arange(before, total - 1).split(max(1, _LOGITS_AT_ONCE // (rows * vocab))):
        begin, end = int(piece[0]), int(piece[-1]) + 1
        found = _piece(model, filled[:, begin:end], cache, edits, kept, begin, every=True)
        record.add(found, filled[:, begin + 1 : end + 1])
    lengths, stopped = inside.sum(1).cpu(), torch.zeros(rows, dtype=torch.bool)
    given = tokens[:, prompt_length:].cpu()
    return _generated(given, lengths, stopped, record, prompt_length, kept)


def _check(model: HookedModel, tokens: Tensor, positions: int) -> None:
    if positions > model.adapter.n_ctx:
        raise ModelError(
            f"prompt and new tokens need {positions} positions, {model.name} has "
            f"{model.adapter.n_ctx}: shorten one of them."
        )
    if model.thoughts is not None or model.inputs(tokens[:1]).slots:
        raise ModelError(
            f"{model.name} thinks in vectors between tokens; replay is for models that write "
            "tokens only."
        )


def _prompt(
    model: HookedModel,
    tokens: Int[Tensor, "row position"],
    edits: Mapping[Site, Edit],
    kept: Mapping[Site, list[Tensor]],
    last: bool = False,
) -> tuple[Tensor | None, Any]:
    """Run prompts: logits at their last position [row, 1, vocab], and the cache of all rows.

    last: keep activations of the last position alone.
    """
    rows, length = tokens.shape
    if length == 0:
        return None, model.adapter.new_cache(rows)
    by_row = any(getattr(edit, "by_row", True) for edit in edits.values())
    if by_row or model.edits:
        one, which = tokens, torch.arange(rows, device=tokens.device)
    else:
        one, which = tokens.unique(dim=0, return_inverse=True)
    cache = model.adapter.new_cache(len(one))
    found: dict[Site, list[Tensor]] = {site: [] for site in kept}
    logits = _piece(model, one, cache, edits, found, 0, last=last)
    for site, into in kept.items():
        into.append(found[site][0][which])
    if len(one) == rows and bool((which == torch.arange(rows, device=which.device)).all()):
        return logits, cache
    before = model.adapter.cut(model.adapter.kept(cache), length, which)
    return logits[which], model.adapter.new_cache(rows, before)


def _piece(
    model: HookedModel,
    tokens: Int[Tensor, "row position"],
    cache: Any,
    edits: Mapping[Site, Edit],
    kept: Mapping[Site, list[Tensor]],
    start: int,
    every: bool = False,
    last: bool = False,
) -> Float[Tensor, "row some vocab"]:
    """Run positions from `start` on behind the cache; logits at the last of them, or at each."""
    with HookSet() as hooks:
        model.hook_edits(hooks, model.edits, start)
        model.hook_edits(hooks, edits, start)
        for site, into in kept.items():

            def keep(x: Tensor, into: list[Tensor] = into) -> None:
                flat = rearrange(x, FLAT)
                # A slice alone would keep the whole prompt alive.
                into.append(flat[:, -1:].clone() if last else flat)

            hooks.on_output(model.adapter.hook_point(site), str(site), keep)
        return model.adapter.step(tokens, cache, every)[1]


def _generated(
    tokens: Tensor,
    lengths: Tensor,
    stopped: Tensor,
    record: _Record,
    prompt_length: int,
    kept: Mapping[Site, list[Tensor]],
) -> Generated:
    after = torch.arange(tokens.shape[1])[None] >= lengths[:, None]
    values = {site: torch.cat(found, 1).cpu() for site, found in kept.items()}
    return Generated(
        tokens=tokens,
        lengths=lengths,
        stopped=stopped,
        logprobs=torch.cat(record.logprobs, 1).cpu().masked_fill(after, float("nan")),
        top_tokens=torch.cat(record.tokens, 1).cpu().masked_fill(after[..., None], AFTER),
        top_logprobs=torch.cat(record.values, 1).cpu().masked_fill(after[..., None], float("nan")),
        prompt_length=prompt_length,
        activations=values,
    )
