"""`HookedModel`: one small interface over the models of TransformerLens.

Five things can be done with it: run, run with patches, cache sites, take gradients at sites, and
change a baseline run in many small ways at once (`resume`). Every hook is removed when a call
returns or raises.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuits.models.adapters import Adapter, ModelError, make_adapter
from circuits.models.edits import Edit, hook_edit
from circuits.models.gradients import Gradients, differentiate
from circuits.models.hooks import HookSet
from circuits.models.patches import Patches, between, check_patches, hook_patches
from circuits.models.reading import read_activations, read_baseline, read_sites
from circuits.models.resume import Baseline
from circuits.models.rows import differentiate_rows, resume_rows
from circuits.models.stepped import Change, run_stepped
from circuits.models.thoughts import Filling, Mode, Thoughts, check_mode
from circuits.sites import Site, SiteError, SiteKind
from circuits.task import Inputs


class HookedModel:
    """A language model whose sites can be read, patched and differentiated.

    name: what was loaded. sha256: of its weights. tokenizer: the Hugging Face tokenizer (None for a
    model without one). check: what `circuits.models.check` found when the model was loaded; while
    it is None or says so, `resume` uses full forwards.
    """

    def __init__(self, model: Any, *, name: str, sha256: str = "", tokenizer: Any = None) -> None:
        self.adapter: Adapter = make_adapter(model)
        self.name = name
        self.sha256 = sha256
        self.tokenizer = tokenizer
        self.check: Any = None
        self.can_resume = False
        self.edits: Mapping[Site, Edit] = {}
        self._filling = Filling()
        self._thoughts: Thoughts | None = None
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)  # halves the cost of a backward pass
        self.module.eval()

    @property
    def module(self) -> nn.Module:
        """The TransformerLens model itself."""
        return self.adapter.module

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.adapter.n_layers

    @property
    def n_heads(self) -> int:
        """Number of attention heads a layer."""
        return self.adapter.n_heads

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.adapter.d_model

    @property
    def device(self) -> torch.device:
        """Where the weights are (the embedding's, when they are on several devices)."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self.module.parameters()).dtype

    def require(self, kind: SiteKind) -> None:
        """Raise `SiteError` when sites of this kind cannot be patched in this model."""
        self.adapter.hook_point(Site(0, kind))
        if kind == "resid_mid" and self.check is not None and not self.check.adds_up:
            raise SiteError(
                "resid_mid is patched through attn_out, but in this model resid_pre + attn_out is "
                f"not the stream (off by {self.check.stream_error:.1%}). Use another site."
            )

    def has(self, kind: SiteKind) -> bool:
        """Whether sites of this kind can be patched in this model."""
        try:
            self.require(kind)
        except SiteError:
            return False
        return True

    def inputs(self, inputs: Inputs | Tensor) -> Inputs:
        """What a pass over `inputs` is given: on the model's device, tokens alone completed as
        `filled` says. Raises `ModelError` for prompts that are too long."""
        given = inputs if isinstance(inputs, Inputs) else self._filling(self, inputs)
        if given.tokens.shape[1] > self.adapter.n_ctx:
            raise ModelError(
                f"a prompt has {given.tokens.shape[1]} tokens, {self.name} takes at most "
                f"{self.adapter.n_ctx}: shorten it."
            )
        return given.to(self.device)

    @property
    def thoughts(self) -> Thoughts | None:
        """How the model thinks, for models that do. Then the token that marks a thought is one."""
        return self._thoughts

    @thoughts.setter
    def thoughts(self, thoughts: Thoughts | None) -> None:
        self._thoughts = thoughts
        if thoughts is not None:  # as the model's own weights
            thoughts.step.eval().requires_grad_(False)
        self._filling = Filling(thoughts.inputs) if thoughts else Filling()

    @contextlib.contextmanager
    def filled(self, fill: Callable[[Tensor], Inputs]) -> Iterator[None]:
        """For the time of a block, token ids given alone mean `fill(tokens)`: prompts of a task
        that makes its own embeddings."""
        before = self._filling
        self._filling = Filling(fill, before.mode)
        try:
            yield
        finally:
            self._filling = before

    @contextlib.contextmanager
    def thinking(self, mode: Mode | None) -> Iterator[None]:
        """For the time of a block, thoughts are "rerolled" or "frozen"; see
        `circuits.models.thoughts`. None leaves them as they are: a model's own are rerolled."""
        check_mode(mode)
        before = self._filling
        self._filling = Filling(before.fill, mode or before.mode)
        try:
            yield
        finally:
            self._filling = before

    def thinks(self, tokens: Int[Tensor, "row position"]) -> Mode | None:
        """How thoughts of these prompts are treated now; None for prompts without."""
        given = self._filling.fill(tokens)
        if not given.slots:
            return None
        return self._filling.mode or ("rerolled" if given.rolled else "frozen")

    @torch.no_grad()
    def roll(self, inputs: Inputs) -> Inputs:
        """The same inputs with the embeddings that their recurrence makes, to be held fixed: those
        of the model without its edits, whenever that is asked for."""
        given = self.inputs(inputs)
        made = run_stepped(self.adapter, given, lambda hooks, start, stop: None)
        return replace(given, embeddings=made.thoughts)

    @contextlib.contextmanager
    def edited(self, edits: Mapping[Site, Edit]) -> Iterator[None]:
        """Change the model itself for the time of a block: in every pass the activations at sites
        are put through `edits` first; what is read, patched and differentiated is what they give.

        edits: as in `run_all_positions`; differentiable where gradients are asked for. Patches are
            then computed by full forwards. An inner block replaces the edits of an outer one.
        """
        before = self.edits, self.can_resume
        self.edits, self.can_resume = dict(edits), False
        try:
            yield
        finally:
            self.edits, self.can_resume = before

    def change(self, more: Change = lambda hooks, start, stop: None) -> Change:
        """What every piece of a stepped run is put through: the model's own edits, and more."""

        def change(hooks: HookSet, start: int, stop: int) -> None:
            self.hook_edits(hooks, self.edits, start)
            more(hooks, start, stop)

        return change

    def hook_edits(self, hooks: HookSet, edits: Mapping[Site, Edit], start: int = 0) -> None:
        for site, edit in edits.items():
            if site.kind == "resid_mid":
                self.require(site.kind)
            hook_edit(hooks, self.adapter, site, edit, start)

    def hook_inputs(self, hooks: HookSet, inputs: Inputs) -> None:
        """What every pass begins with: embeddings overwritten, and the model's edits."""
        self._hook_embeddings(hooks, inputs)
        self.hook_edits(hooks, self.edits)

    def _hook_embeddings(self, hooks: HookSet, inputs: Inputs) -> None:
        embeddings = inputs.embeddings
        if embeddings is None:
            return

        def fill(x: Tensor) -> Tensor:
            x = x.clone()
            x[:, list(inputs.slots)] = embeddings.to(x.dtype)
            return x

        hooks.on_output(self.adapter.embedding(), "embedding", fill)

    @torch.no_grad()
    def run(
        self, inputs: Inputs | Tensor, patches: Sequence[Patches] = ()
    ) -> Float[Tensor, "row vocab"]:
        """Logits at the last position, with `patches` applied.

        Raises `SiteError` for sites the model lacks and `PatchError` for patches that do not fit.
        """
        return self.forward(inputs, patches)

    def forward(
        self, inputs: Inputs | Tensor, patches: Sequence[Patches] = ()
    ) -> Float[Tensor, "row vocab"]:
        """`run` without switching gradients off, for patches that are differentiated."""
        given = self.inputs(inputs)
        n_rows, length = given.tokens.shape
        check_patches(self.adapter, patches, n_rows, length)
        if given.rolled:

            def patch(hooks: HookSet, start: int, stop: int) -> None:
                hook_patches(hooks, self.adapter, between(patches, start, stop))

            return run_stepped(self.adapter, given, self.change(patch)).logits[:, -1]
        with HookSet() as hooks:
            self.hook_inputs(hooks, given)
            hook_patches(hooks, self.adapter, patches)
            return self.adapter.forward(given.tokens)

    @torch.no_grad()
    def run_all_positions(
        self,
        inputs: Inputs | Tensor,
        edits: Mapping[Site, Edit] | None = None,
        last: int | None = None,
    ) -> Float[Tensor, "row some vocab"]:
        """Logits at every position, with the activations at sites changed by `edits`.

        edits: per site a function of the activations there [row, position, width] (`z` with its
            heads side by side), which are already changed by the edits below.
        last: at how many of the last positions logits are wanted; None for all.
        """
        if isinstance(inputs, Tensor) and self._thoughts is not None:
            parts = self._thoughts.patterns(inputs)
            found = [
                self.run_all_positions(self.inputs(inputs[rows]), edits, last) for rows in parts
            ]
            return torch.cat(found)[torch.cat(parts).argsort().to(self.device)]
        given = self.inputs(inputs)
        if given.rolled:

            def edit(hooks: HookSet, start: int, stop: int) -> None:
                self.hook_edits(hooks, edits or {}, start)

            logits = run_stepped(self.adapter, given, self.change(edit), every=True).logits
            return logits if last is None else logits[:, -last:]
        with HookSet() as hooks:
            self.hook_inputs(hooks, given)
            self.hook_edits(hooks, edits or {})
            return self.adapter.forward_all(given.tokens, last)

    @torch.no_grad()
    def cache(
        self,
        inputs: Inputs | Tensor,
        sites: Sequence[Site],
        first: int = 0,
        *,
        unedited: bool = False,
    ) -> tuple[Float[Tensor, "row vocab"], dict[Site, Float[Tensor, "row position width"]]]:
        """Logits at the last position, and the activations at `sites` from position `first` on.

        `z` is flattened over heads: width n_heads x d_head. Only what is asked for is kept.
        unedited: what arrives at a site, before the model's own edit of it (`edited`).
        """
        return read_sites(self, self.inputs(inputs), sites, first, unedited)

    @torch.no_grad()
    def activations(
        self, inputs: Inputs | Tensor, sites: Sequence[Site]
    ) -> dict[Site, Float[Tensor, "row position width"]]:
        """The activations at `sites`, without what comes after the last of them: no logits.

        Attention looks back only, so rows may be padded at their end and the values there ignored.
        """
        return read_activations(self, inputs, sites)

    def gradients(
        self,
        inputs: Inputs | Tensor,
        sites: Sequence[Site],
        metric: Callable[[Tensor], Tensor],
    ) -> Gradients:
        """Values at `sites` and the gradient of `metric` there, in one forward and one backward.

        metric: from logits at the last position [row, vocab] to one value a row.
        The gradient is that of the model as it is (`edited` changes it). At resid_mid it is the one
        at attn_out: on a Bridge the tensor at hook_resid_mid leads only into the MLP and not along
        the stream.
        """
        return differentiate(self, self.inputs(inputs), sites, metric)

    @torch.no_grad()
    def baseline(
        self, inputs: Inputs | Tensor, first: int = 0, edits: Mapping[Site, Edit] | None = None
    ) -> Baseline:
        """Run once and keep what `resume` needs: the residual stream from position `first` on at
        every layer, and all keys and values.

        edits: of the run. What is kept of the stream is what arrives at a layer, before its edit,
            as `circuits.models.edited_rows` needs it; `resume` itself is for runs without edits.
        """
        return read_baseline(self, self.inputs(inputs), first, edits or {})

    def resume(
        self,
        baseline: Baseline,
        pairs: Int[Tensor, " row"],
        patches: Sequence[Patches],
        batch_size: int | None = None,
        read: Callable[[Tensor, Tensor], Any] = lambda rows, logits: logits,
    ) -> Iterator[tuple[Int[Tensor, " part"], Any]]:
        """Run every row's patches on its baseline prompt; yield (row numbers, what is read) in
        parts.

        pairs: for each row, the entry of the baseline it changes.
        patches: `Patches.rows` count rows; positions count from the first token and must not lie
            before `baseline.first`.
        batch_size: most rows at once; None takes what fits into memory. Fewer are run after an
            out-of-memory error, and the results do not depend on it beyond rounding.
        read: from (row numbers, logits at the last position [part, vocab]) to what is yielded; the
            logits themselves by default.

        Parts come in the order they are computed, and a row without patches gives the baseline's
        own logits. Uses full forwards where resuming was found not to agree with them.
        """
        return resume_rows(self, baseline, pairs, patches, batch_size, read)

    def resume_gradients(
        self,
        baseline: Baseline,
        pairs: Int[Tensor, " row"],
        site: Site,
        values: Callable[[Tensor], Tensor],
        metric: Callable[[Tensor, Tensor], Tensor],
        batch_size: int | None = None,
    ) -> Iterator[tuple[Int[Tensor, " part"], Tensor, Tensor]]:
        """Overwrite `site` from `baseline.first` on in every row, and differentiate there.

        pairs: for each row, the entry of the baseline it changes.
        values: from row numbers to activations [part, position - first, width].
        metric: from (pair of each row, logits at the last position) to one value a row.

        Yields, in parts, (row numbers, metric, gradient of the row's metric with respect to its
        values).
        """
        return differentiate_rows(self, baseline, pairs, site, values, metric, batch_size)
