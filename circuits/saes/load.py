"""Finding SAEs: the embedded ones, a SAELens release, or a local folder.

Everything that can be wrong about them is looked at before any model pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from circuits.models.hooked import HookedModel
from circuits.saes.collection import SaeSet, SaeSource
from circuits.saes.formats import in_folder
from circuits.saes.releases import in_release
from circuits.saes.sae import SaeError
from circuits.sites import Site, SiteError

EMBEDDED = Path(__file__).parent / "embedded"


def load_saes(
    name: str | Path,
    model: HookedModel,
    *,
    layers: Sequence[int] | None = None,
    l0: float | None = None,
    width: str | None = None,
    memory: int | None = None,
) -> SaeSet:
    """Find the SAEs called `name` and check that they fit `model`; weights are loaded on demand.

    name: "embedded" for those of the embedded model that come with the package; a SAELens release
        (`gemma-scope-2b-pt-res-canonical`, `llama_scope_lxr_8x`, ...); or a local folder with one
        or more SAEs.
    layers: which layers; all there are by default.
    l0: of the ids a release has for a site, the one whose average L0 is closest.
    width: of the ids a release has for a site, those of this width; None where ids name none, and
        16k where they do. l0 and width are for releases only.
    memory: most bytes of weights on the device at once.

    Raises `SaeError` when there are none, when several fit one site, for transcoders, pickled
    weights, normalisations that are not in the files, and for SAEs whose site or width the model
    does not have. Non-finite weights raise when an SAE is first used.
    """
    path = EMBEDDED if str(name) == "embedded" else Path(name)
    if path.exists() and (l0 is not None or width is not None):
        raise SaeError("l0 and width choose among a release's SAEs; a folder has those it has.")
    found = in_folder(path, layers) if path.exists() else in_release(str(name), layers, l0, width)
    chosen: dict[Site, SaeSource] = {}
    for source in found:
        if layers is not None and source.site.layer not in layers:
            continue
        if source.site in chosen:
            raise SaeError(
                f"two SAEs for {source.site}: {chosen[source.site].name} and {source.name}. Give a "
                "folder or a release with one SAE a site."
            )
        _check_fit(source, model)
        # Where the package lies says nothing about its SAEs.
        own = path == EMBEDDED
        name_it = {"name": f"embedded/{source.site}"} if own else {}
        chosen[source.site] = replace(source, **name_it)
    if not chosen:
        wanted = "" if layers is None else f" for layers {', '.join(map(str, layers))}"
        raise SaeError(f"{name} has no SAEs{wanted}.")
    return SaeSet(chosen, model.device, memory)


def _check_fit(source: SaeSource, model: HookedModel) -> None:
    try:
        model.adapter.hook_point(source.site)
    except SiteError as error:
        raise SaeError(f"the SAE {source.name} reads {source.site}, but {error}") from error
    heads = model.n_heads * model.adapter.d_head
    width = heads if source.site.kind == "z" else model.d_model
    if source.width != width:
        raise SaeError(
            f"the SAE {source.name} takes vectors of width {source.width}, but {source.site} of "
            f"{model.name} has width {width}: it belongs to another model"
            + (f" ({source.model_name})." if source.model_name else ".")
        )
