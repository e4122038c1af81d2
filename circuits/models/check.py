"""What is checked of every model when it is loaded, on a few random tokens.

1. The stream adds up: resid_post = resid_pre + attn_out + mlp_out.
2. Early positions do not see later ones (otherwise `ModelError`).
3. Resuming agrees with the full forward. In float32 and float64 logit differences must agree to
   1e-4. In 16-bit types rounding alone moves logits, so there the difference is compared
   with what rounding does to the full forward itself: the logit differences between its own 16-bit
   and float32 versions, of which twice the largest is accepted.

Where resuming does not agree, patching runs full forwards instead and results say so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from circuits.models.adapters import ModelError
from circuits.models.hooked import HookedModel
from circuits.models.memory import out_of_memory
from circuits.models.patches import Patches
from circuits.sites import Site, SiteKind

_LENGTH = 12
_FIRST = 5
_TOLERANCE = 1e-4
_STREAM_TOLERANCE = 1e-2  # 16-bit sums are off by 3e-3; a wrong part by 1e-1 and more


@dataclass(frozen=True)
class ModelCheck:
    """What was found. Errors are the largest absolute differences of logit differences between
    random tokens, over the patched runs tried.

    resume_error: resumed against full forward. allowed: what was accepted.
    rounding: in 16-bit types, the full forward against itself in float32; else 0.
    stream_error: largest deviation of the stream from the sum of its parts, relative to its size.
    resumes: whether resuming is used. failure: the error that a resumed pass raised, if any.
    """

    resume_error: float
    allowed: float
    rounding: float
    stream_error: float
    resumes: bool
    failure: str = ""

    @property
    def adds_up(self) -> bool:
        """Whether the stream is the sum of its parts, to rounding in 16-bit types."""
        return self.stream_error < _STREAM_TOLERANCE

    def as_dict(self) -> dict[str, Any]:
        """For the record of a run."""
        return asdict(self)


def check_model(model: HookedModel) -> ModelCheck:
    """Run the checks and set `model.check` and `model.can_resume`."""
    generator = torch.Generator().manual_seed(0)
    vocab = _vocabulary(model)
    tokens = torch.randint(vocab, (2, _LENGTH), generator=generator)
    tokens[1, :_FIRST] = tokens[0, :_FIRST]
    _require_causal(model, tokens, vocab)
    stream_error = _stream_error(model, tokens)
    pairs, patches = _patched_rows(model, tokens, generator)
    seen = torch.randint(vocab, (64, 2), generator=generator).to(model.device)

    def differences(logits: Tensor) -> Tensor:
        return (logits[:, seen[:, 0]] - logits[:, seen[:, 1]]).double()

    full = differences(model.run(tokens[pairs], patches))
    rounding, allowed = 0.0, _TOLERANCE
    if model.dtype.itemsize < 4:
        rounding = _rounding(model, tokens[pairs], patches, differences, full)
        allowed = 2 * rounding
    error, failure = _resume_error(model, tokens, pairs, patches, differences, full)
    found = ModelCheck(error, allowed, rounding, stream_error, error <= allowed, failure)
    model.check = found
    model.can_resume = found.resumes
    return found


def _vocabulary(model: HookedModel) -> int:
    return int(model.run(torch.zeros(1, 2, dtype=torch.long)).shape[1])


def _require_causal(model: HookedModel, tokens: Tensor, vocab: int) -> None:
    site = Site(model.n_layers - 1, "resid_post")
    later = tokens.clone()
    later[:, -1] = (later[:, -1] + 1) % vocab
    _, before = model.cache(tokens, [site])
    _, after = model.cache(later, [site])
    early = before[site][:, :-1].double()
    moved = (early - after[site][:, :-1].double()).norm(dim=-1)
    tolerance = _TOLERANCE if model.dtype.itemsize >= 4 else _STREAM_TOLERANCE
    # Position by position: the first one is so large that it would hide what happens to others.
    # Not as a quotient, which would be NaN where nothing is written.
    if bool((moved > tolerance * early.norm(dim=-1)).any()):
        raise ModelError(
            f"{model.name} is not causal: a later token changes earlier positions. Only models "
            "that read from left to right can be patched token by token."
        )


def _stream_error(model: HookedModel, tokens: Tensor) -> float:
    kinds: list[SiteKind] = ["resid_pre", "attn_out", "mlp_out", "resid_post"]
    if not model.has("mlp_out"):  # attention-only models
        kinds.remove("mlp_out")
    sites = [Site(layer, kind) for layer in range(model.n_layers) for kind in kinds]
    _, values = model.cache(tokens, sites)
    worst = 0.0
    for layer in range(model.n_layers):
        parts = [values[Site(layer, kind)].double() for kind in kinds if kind != "resid_post"]
        total = values[Site(layer, "resid_post")].double()
        worst = max(worst, float((sum(parts) - total).norm() / total.norm()))
    return worst


def _patched_rows(
    model: HookedModel, tokens: Tensor, generator: torch.Generator
) -> tuple[Tensor, list[Patches]]:
    """Prompt 1 put into prompt 0, at a few layers and positions."""
    layers = sorted({0, model.n_layers // 2, model.n_layers - 1})
    _, clean = model.cache(tokens[1:], [Site(layer, "resid_pre") for layer in layers])
    patches, row = [], 0
    for layer in layers:
        positions = torch.tensor([_FIRST, _LENGTH - 2, _LENGTH - 1])
        values = clean[Site(layer, "resid_pre")][0, positions.to(model.device)]
        rows = torch.arange(row, row + len(positions))
        patches.append(
            Patches(
                Site(layer, "resid_pre"),
                rows.to(model.device),
                positions.to(model.device),
                values,
            )
        )
        row += len(positions)
    return torch.zeros(row, dtype=torch.long), patches


def _resume_error(
    model: HookedModel,
    tokens: Tensor,
    pairs: Tensor,
    patches: list[Patches],
    differences: Any,
    full: Tensor,
) -> tuple[float, str]:
    worst = 0.0
    model.can_resume = True
    try:
        baseline = model.baseline(tokens[:1], first=_FIRST)
        for rows, logits in model.resume(baseline, pairs, patches):
            error = (differences(logits) - full[rows.to(full.device)]).abs().max()
            worst = max(worst, float(error) if torch.isfinite(error) else float("inf"))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # An architecture whose cache or layer list does not fit raises from inside of
        # transformers; full forwards are right for it, only slower.
        return float("inf"), f"{type(error).__name__}: {error}"
    return worst, ""


def _rounding(
    model: HookedModel, tokens: Tensor, patches: list[Patches], differences: Any, full: Tensor
) -> float:
    """How far 16-bit rounding moves the full forward's own logit differences.

    Where the widened weights do not fit into memory, one rounding of the largest logit is assumed,
    which is less than what all layers together do.
    """
    try:
        return float((differences(_in_float32(model, tokens, patches)) - full).abs().max())
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    largest = float(model.run(tokens, patches).abs().max())
    return torch.finfo(model.dtype).eps * largest


def _in_float32(model: HookedModel, tokens: Tensor, patches: list[Patches]) -> Tensor:
    """The same patched full forward with the weights widened, and narrowed again afterwards.

    Widening and narrowing back is exact. Buffers that were float32 already are left alone.
    """
    tensors = [*model.module.parameters(), *model.module.buffers()]
    narrow = [(t, t.dtype) for t in tensors if t.is_floating_point() and t.dtype.itemsize < 4]
    try:
        for tensor, _ in narrow:
            tensor.data = tensor.data.float()
        return model.run(tokens, patches)
    finally:
        for tensor, dtype in narrow:
            tensor.data = tensor.data.to(dtype)
