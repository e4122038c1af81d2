"""Passes over given tokens: what a change does when it cannot change the text.

The tokens of a response are put behind its prompt and run in one pass, with or without changes. The
prediction of step s is made at the position before the response's token s, and the value of a
latent at step s is the one at that position. Responses of one prompt length go together; they are
padded at their end, where attention never looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.models.edits import Edit
from circuits.models.hooked import HookedModel
from circuits.models.hooks import HookSet
from circuits.replay.paired import PathwayError
from circuits.saes.sae import Sae
from circuits.sites import Site

_DENSE_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Text:
    """Responses behind prompts of one length.

    trial: number of each row's trial. tokens: prompt and response without its last token, padded at
    the end. prompt: tokens of the prompts. lengths: steps of each response.
    """

    trial: Int[np.ndarray, " row"]
    tokens: Int[Tensor, "row position"]
    prompt: int
    lengths: Int[Tensor, " row"]

    @property
    def steps(self) -> slice:
        """The positions at which the steps are predicted."""
        return slice(self.prompt - 1, self.tokens.shape[1])

    @property
    def count(self) -> int:
        """Steps of the longest response."""
        return self.tokens.shape[1] - self.prompt + 1


def text_of(
    trial: Int[np.ndarray, " row"], prompts: Sequence[Sequence[int]], given: Sequence[Sequence[int]]
) -> Text:
    """Prompts of one length and a response each, every one with a token at least."""
    lengths = [len(one) for one in given]
    if not all(lengths) or len({len(p) for p in prompts}) != 1:
        raise PathwayError("prompts of one length with responses that are not empty are expected.")
    longest = max(lengths)
    rows = [
        [*prompt, *one[:-1], *[one[-1]] * (longest - len(one))]
        for prompt, one in zip(prompts, given, strict=True)
    ]
    return Text(trial, torch.tensor(rows), len(prompts[0]), torch.tensor(lengths))


def batches(
    prompts: Sequence[Sequence[int]], given: Sequence[Sequence[int]], size: int
) -> Iterator[Int[np.ndarray, " row"]]:
    """Numbers of trials that are run together: one prompt length, responses of about one length."""
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), len(given[i]), i))
    group: list[int] = []
    for i in order:
        if group and (len(group) == size or len(prompts[i]) != len(prompts[group[0]])):
            yield np.array(group)
            group = []
        group.append(i)
    if group:
        yield np.array(group)


@dataclass(frozen=True)
class Pass:
    """logits: predictions of the steps. seen: what arrives at the watched sites, before the changes
    there; at every position, padding included."""

    logits: Float[Tensor, "row step vocab"]
    seen: Mapping[Site, Float[Tensor, "row position width"]]


@torch.no_grad()
def run_pass(
    model: HookedModel,
    text: Text,
    edits: Mapping[Site, Edit] | None = None,
    watch: Sequence[Site] = (),
) -> Pass:
    """One pass over `text` with the activations changed by `edits`."""
    seen: dict[Site, Tensor] = {}
    logits = model.run_all_positions(text.tokens, _watched(edits or {}, watch, seen), text.count)
    return Pass(logits, seen)


def _watched(
    edits: Mapping[Site, Edit], watch: Sequence[Site], seen: dict[Site, Tensor]
) -> dict[Site, Edit]:
    """Edits that write down what they are given. (A hook beside them would see resid_mid only after
    its edit, which acts through attn_out.)"""

    def watching(site: Site) -> Edit:
        def look(x: Tensor, start: int) -> Tensor:
            seen[site] = x
            return edits[site](x, start) if site in edits else x

        return look

    return {**edits, **{site: watching(site) for site in watch}}


def slopes(
    model: HookedModel,
    text: Text,
    edits: Mapping[Site, Edit],
    watch: Sequence[Site],
    outcome: Callable[[Tensor], Tensor],
) -> Mapping[Site, Float[Tensor, "row position width"]]:
    """Gradients of every row's outcome at the watched sites, of the model with `edits`.

    outcome: from the logits of the steps [row, step, vocab] to one number a row.
    """
    seen: dict[Site, Tensor] = {}
    with torch.enable_grad(), HookSet() as hooks:
        given = model.inputs(text.tokens)

        def leaf(site: Site) -> Edit:
            def change(x: Tensor, start: int) -> Tensor:
                changed = edits[site](x, start) if site in edits else x
                seen[site] = torch.zeros_like(changed, requires_grad=True)
                return changed + seen[site]

            return change

        model.hook_inputs(hooks, given)
        model.hook_edits(hooks, {**edits, **{site: leaf(site) for site in watch}})
        logits = model.adapter.forward_all(given.tokens, text.count)
        total = outcome(logits).sum()
        found = torch.autograd.grad(total, [seen[site] for site in watch])
    return dict(zip(watch, found, strict=True))


@torch.no_grad()
def coefficients(
    sae: Sae, x: Float[Tensor, "row position width"], latents: Sequence[int]
) -> Float[Tensor, "row position some"]:
    """Effective coefficients of some latents, in the SAE's type: in the model's, if that is a half
    type, holding a latent at its own value would change it."""
    read = sae.reader(latents)
    flat = x.reshape(-1, x.shape[-1])
    parts = [read(part.to(sae.dtype)) for part in flat.split(max(1, _DENSE_AT_ONCE // sae.d_sae))]
    return torch.cat(parts).view(*x.shape[:2], -1)


@torch.no_grad()
def step_means(
    sae: Sae, found: Pass, text: Text
) -> tuple[Int[np.ndarray, " active"], Int[np.ndarray, " active"], Float[np.ndarray, " active"]]:
    """(row, latent, mean effective coefficient over the row's steps) of what is active."""
    x = found.seen[sae.site][:, text.steps]
    parts = sae.encode_sparse(x.to(sae.dtype))
    latents = parts.latents
    value = latents.value * parts.scale[latents.row, latents.position, 0]
    lengths = text.lengths.to(x.device)
    inside = latents.position < lengths[latents.row]
    value = value / lengths[latents.row]
    kept = [t[inside].cpu().numpy() for t in (latents.row, latents.latent, value)]
    return kept[0], kept[1], kept[2].astype(np.float64)
