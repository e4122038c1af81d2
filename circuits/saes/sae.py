"""One SAE: an activation as latents times decoder rows, plus an offset, plus the error.

At a site, x = offset + sum_i f_i a_i + e with latents f, effective decoder rows a_i and error e.
For most SAEs a_i is row i of `W_dec` and the offset is `b_dec`. With input normalisation both are
scaled by what the normalisation divided by, which differs from token to token: a_i = s * d_i.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.errors import CircuitsError
from circuits.saes.encode import narrow_encoder, sparse_encoder
from circuits.sites import Site

_DENSE_AT_ONCE = 1 << 22  # latents, zeros included, that are held at once


class SaeError(CircuitsError):
    """SAEs that cannot be found or loaded, or that do not fit the model."""


@dataclass(frozen=True)
class Latents:
    """The active latents of a batch, sparse: memory does not grow with the dictionary.

    row, position, latent: where each is; value: its activation, never 0.
    shape: (rows, positions, latents of the dictionary).
    """

    row: Int[Tensor, " active"]
    position: Int[Tensor, " active"]
    latent: Int[Tensor, " active"]
    value: Float[Tensor, " active"]
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, dense: Float[Tensor, "row position latent"]) -> Latents:
        """The non-zero entries of `dense`."""
        row, position, latent = dense.nonzero(as_tuple=True)
        rows, positions, width = dense.shape
        return cls(row, position, latent, dense[row, position, latent], (rows, positions, width))

    def part(self, which: Bool[Tensor, " active"] | Int[Tensor, " some"]) -> Latents:
        """Some of them: those that a mask or numbers tell."""
        return Latents(
            self.row[which],
            self.position[which],
            self.latent[which],
            self.value[which],
            self.shape,
        )

    @property
    def token(self) -> Int[Tensor, " active"]:
        """Row and position as one number, row after row."""
        return self.row * self.shape[1] + self.position

    def dense(self) -> Float[Tensor, "row position latent"]:
        """All latents, zeros included."""
        full = torch.zeros(self.shape, dtype=self.value.dtype, device=self.value.device)
        full[self.row, self.position, self.latent] = self.value
        return full


@dataclass(frozen=True)
class Encoded:
    """What an SAE makes of activations: offset + scale * sum_i f_i d_i is its reconstruction.

    latents: f. scale: s, [row, position, 1]; 1 without input normalisation.
    offset: the part of the reconstruction that no latent is responsible for, [row, position,
        width].
    """

    latents: Latents
    scale: Float[Tensor, "row position one"]
    offset: Float[Tensor, "row position width"]


@dataclass(frozen=True)
class Decomposition(Encoded):
    """x = offset + scale * sum_i f_i d_i + error, exactly up to rounding.

    error: what the SAE does not reconstruct, [row, position, width].
    """

    error: Float[Tensor, "row position width"]


class Sae:
    """A SAELens SAE at a site of a model.

    rows: decoder rows d_i, [latent, width]; for SAEs that rescale latents by the norm of their
    decoder row, the rows divided by that norm.

    centred: the SAE was trained on a model whose writes TransformerLens had centred
    (`center_writing_weights`), where every activation is x less its mean over the width. It then
    reads x - mean(x), and the mean belongs to the offset.
    """

    def __init__(self, sae: Any, site: Site, *, centred: bool = False) -> None:
        for parameter in sae.parameters():
            parameter.requires_grad_(False)
        if sae.cfg.reshape_activations == "hook_z":
            # Activations at z arrive with heads side by side already.
            sae.turn_off_forward_pass_hook_z_reshaping()
        self._sae = sae.eval()
        self._active = sparse_encoder(sae)
        # Made once: a copy of the decoder each time would not be flat in memory.
        self._rows: Tensor = sae.W_dec
        if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
            self._rows = sae.W_dec / sae.W_dec.norm(dim=-1, keepdim=True)
        self.site, self.centred = site, centred
        self.d_sae, self.width = int(sae.cfg.d_sae), int(sae.cfg.d_in)

    @property
    def rows(self) -> Float[Tensor, "latent width"]:
        """Decoder rows."""
        return self._rows

    @property
    def normalises(self) -> bool:
        """Whether scale and offset of a decomposition differ from token to token."""
        return self.centred or self._sae.cfg.normalize_activations != "none"

    @property
    def constant_offset(self) -> Float[Tensor, " width"]:
        """What every reconstruction has in it, of SAEs that do not normalise."""
        return self._sae.b_dec

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; activations of another type are converted."""
        return self._sae.W_dec.dtype

    @property
    def nbytes(self) -> int:
        """What the weights take on their device."""
        return sum(p.numel() * p.element_size() for p in self._sae.parameters())

    @property
    def module(self) -> torch.nn.Module:
        """SAELens' SAE."""
        return self._sae

    def named_weights(self) -> list[tuple[str, Tensor]]:
        """The weights with their names."""
        return list(self._sae.named_parameters())

    @torch.no_grad()
    def encode(
        self, x: Float[Tensor, "row position width"]
    ) -> Float[Tensor, "row position latent"]:
        """All latents, dense."""
        return self._sae.encode(x - self._mean(x))

    def _mean(self, x: Tensor) -> Tensor | float:
        return x.mean(dim=-1, keepdim=True) if self.centred else 0.0

    @torch.no_grad()
    def decompose(self, x: Float[Tensor, "row position width"]) -> Decomposition:
        """Split activations into latents and error: offset + scale * latents' rows + error = x.

        Never dense: tokens are encoded some at a time, and only active latents are decoded, so that
        memory does not grow with the dictionary.
        """
        parts = self.encode_sparse(x)
        written = self.write(parts.latents)
        if self.normalises:
            written = written * parts.scale
        error = x - parts.offset - written
        return Decomposition(parts.latents, parts.scale, parts.offset, error)

    @torch.no_grad()
    def encode_sparse(self, x: Float[Tensor, "row position width"]) -> Encoded:
        """`decompose` without the error: nothing is decoded."""
        mean = self._mean(x)
        latents = self._latents(x - mean)
        scale, offset = self._affine(x - mean)
        return Encoded(latents, scale, offset + mean)

    def _latents(self, read: Tensor) -> Latents:
        rows, positions, width = read.shape
        flat = read.reshape(-1, width)
        tokens, latents, values, first = [], [], [], 0
        for part in flat.split(max(1, _DENSE_AT_ONCE // self.d_sae)):
            token, latent, value = self._active(part)
            tokens.append(token + first)
            latents.append(latent)
            values.append(value)
            first += len(part)
        token = torch.cat(tokens)
        row = token.div(positions, rounding_mode="floor")
        shape = (rows, positions, self.d_sae)
        return Latents(row, token - row * positions, torch.cat(latents), torch.cat(values), shape)

    def reconstruct(
        self, x: Float[Tensor, "row position width"]
    ) -> Float[Tensor, "row position width"]:
        """offset + scale * latents' rows, dense and differentiable: x less the error."""
        mean = self._mean(x)
        return self._sae.decode(self._sae.encode(x - mean)) + mean

    @torch.no_grad()
    def coefficients(self, x: Float[Tensor, "vector width"]) -> Float[Tensor, "vector latent"]:
        """Effective coefficients a_i = scale * f_i, dense: x = offset + sum_i a_i d_i + error."""
        read = x - self._mean(x)
        found = self._sae.encode(read[None])[0]
        return found * self._affine(read)[0] if self.normalises else found

    def reader(
        self, latents: Sequence[int]
    ) -> Callable[[Float[Tensor, "vector width"]], Float[Tensor, "vector some"]]:
        """A function that gives the effective coefficients of a few latents, in their order.

        Where a latent's gate needs nothing but its own pre-activation (standard, JumpReLU), only
        its column of the encoder is used; otherwise all latents are encoded. The numbers are those
        of `coefficients` up to rounding.
        """
        narrow, which = narrow_encoder(self._sae, latents), list(latents)

        @torch.no_grad()
        def read(x: Tensor) -> Tensor:
            if narrow is None:
                return self.coefficients(x)[:, which]
            taken = x - self._mean(x)
            found = narrow(taken)
            self._forget()
            return found * self._affine(taken)[0] if self.normalises else found

        return read

    def _forget(self) -> None:
        """Drop what SAELens keeps of an input for a decode that does not follow."""
        for state in ("ln_mu", "ln_std", "x_norm_coeff"):
            self._sae.__dict__.pop(state, None)

    def preactivations(
        self, x: Float[Tensor, "vector width"], latents: Int[Tensor, " vector"] | None = None
    ) -> Tensor:
        """What effective coefficients are where their gate is open, differentiable: scale times
        the pre-activation (of magnitudes, in gated SAEs).

        latents: the one that is asked for of each vector, [vector]; all of them without, [vector,
            latent].
        """
        read = x - self._mean(x)
        taken = self._sae.process_sae_in(read[None])[0]
        self._forget()
        factor, bias = self._encoder
        if latents is None:
            made = (taken @ self._sae.W_enc) * factor + bias
        else:
            rows = self._sae.W_enc.T[latents]
            made = (taken * rows).sum(-1) * factor[latents] + bias[latents]
        if not self.normalises:
            return made
        scale = self._affine(read)[0]
        return made * (scale if latents is None else scale[:, 0])

    @cached_property
    def _encoder(self) -> tuple[Tensor, Tensor]:
        """(factor, bias): pre-activations are what is read times `W_enc`, times factor, plus
        bias."""
        sae = self._sae
        if sae.cfg.architecture() == "gated":
            return sae.r_mag.exp(), sae.b_mag
        if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
            norms = sae.W_dec.norm(dim=-1)
            return norms, sae.b_enc * norms
        return torch.ones_like(sae.b_enc), sae.b_enc

    @cached_property
    def encoder_norms(self) -> Float[Tensor, " latent"]:
        """About how much a pre-activation can change where x moves by 1."""
        return self._sae.W_enc.norm(dim=0) * self._encoder[0]

    def offsets(self, x: Float[Tensor, "vector width"]) -> Float[Tensor, "vector width"]:
        """The part of reconstructions that no latent is responsible for, differentiable."""
        mean = self._mean(x)
        return self._affine(x - mean)[1] + mean

    @torch.no_grad()
    def write(self, latents: Latents) -> Float[Tensor, "row position width"]:
        """sum_i f_i d_i at every token; entries must be in the order of tokens."""
        n_tokens = latents.shape[0] * latents.shape[1]
        counts = torch.bincount(latents.token, minlength=n_tokens)
        written = torch.nn.functional.embedding_bag(
            latents.latent,
            self.rows,
            counts.cumsum(0) - counts,
            mode="sum",
            per_sample_weights=latents.value,
        )
        return written.view(*latents.shape[:2], -1)

    def _affine(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kind, bias = self._sae.cfg.normalize_activations, self._sae.b_dec
        if kind == "layer_norm":
            scale = x.std(dim=-1, keepdim=True)
            return scale, bias * scale + x.mean(dim=-1, keepdim=True)
        if kind == "constant_norm_rescale":
            scale = x.norm(dim=-1, keepdim=True) / self.width**0.5
            return scale, bias * scale
        return torch.ones_like(x[..., :1]), bias.expand_as(x)

    @torch.no_grad()
    def compose(self, parts: Decomposition) -> Float[Tensor, "row position width"]:
        """The activation that a decomposition stands for."""
        return parts.offset + parts.scale * self.write(parts.latents) + parts.error
