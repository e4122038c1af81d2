"""SAEs of the releases that SAELens knows, from the hub."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch

from circuits.saes.collection import SaeSource
from circuits.saes.formats import check_config, is_centred
from circuits.saes.sae import SaeError

# Loaders of SAELens that read pickles whatever the id is called.
_PICKLED = (
    "connor_rob_hook_z",
    "goodfire",
    "deepseek_r1",
    "qwen_scope",
    "dictionary_learning_1",
)
_PICKLES = (".pt", ".pth", ".pkl", ".bin", ".ckpt")


def in_release(
    name: str, layers: Sequence[int] | None, l0: float | None, width: str | None
) -> Iterable[SaeSource]:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    directory = get_pretrained_saes_directory()
    if name not in directory:
        near = difflib.get_close_matches(name, directory, n=3, cutoff=0.6)
        hint = f" Similar releases: {', '.join(near)}." if near else ""
        raise SaeError(
            f"there is no SAE release or folder {name!r}.{hint} SAELens' documentation lists the "
            "releases."
        )
    chosen = [
        choose_id(name, ids, directory[name].expected_l0, l0, width)
        for (layer, _), ids in sorted(ids_by_place(directory[name].saes_map).items())
        if layers is None or layer in layers
    ]
    return [_release_source(name, one) for one in chosen]


def ids_by_place(ids: Iterable[str]) -> dict[tuple[int, str], list[str]]:
    """The ids of a release by the layer and, where they name it, the hook they stand for; ids
    without a layer (embeddings) are left out."""
    found: dict[tuple[int, str], list[str]] = {}
    for one in ids:
        layer = re.search(r"(?:layer_?|blocks\.|^l|layers?\.)(\d+)", one)
        hook = re.search(r"hook_[a-z_]+", one)
        if layer and "embedding" not in one:
            found.setdefault((int(layer[1]), hook[0] if hook else ""), []).append(one)
    return found


def choose_id(
    release: str,
    ids: Sequence[str],
    known_l0: dict[str, float],
    l0: float | None,
    width: str | None,
) -> str:
    """The one id of a place that is meant: of the given width, with the average L0 closest to `l0`.

    Raises `SaeError` when several are left and `l0` does not decide, or is not known for any, and
    when there is none of that width.
    """
    widths = {one: m[1] for one in ids if (m := re.search(r"width_([0-9a-zA-Z]+)", one))}
    meant = width or ("16k" if widths else None)
    sized = [one for one in ids if meant is None or widths.get(one) == meant]
    if not sized:
        there = ", ".join(sorted(set(widths.values()))) or "none that is named"
        raise SaeError(f"{release} has no width {meant!r} here; its widths: {there}.")
    if l0 is not None:
        measured = [one for one in sized if known_l0.get(one)]
        if not measured:
            raise SaeError(
                f"{release} does not say the L0 of {', '.join(sized[:3])}: leave out l0."
            )
        return min(measured, key=lambda one: (abs(known_l0[one] - l0), one))
    if len(sized) > 1:
        raise SaeError(
            f"{release} has {len(sized)} SAEs for one place ({', '.join(sized[:3])}, ...): choose "
            "with l0 and width."
        )
    return sized[0]


def _release_source(release: str, sae_id: str) -> SaeSource:
    from sae_lens.loading.pretrained_sae_loaders import load_sae_config_from_huggingface
    from sae_lens.loading.pretrained_saes_directory import get_norm_scaling_factor

    _check_release(release, sae_id)
    try:
        config = load_sae_config_from_huggingface(release, sae_id)
    except (OSError, ValueError, KeyError) as error:
        raise _not_from_hub(f"{release}/{sae_id}", error) from error
    metadata = config.get("metadata") or {}
    folded = {**config}
    if folded.get("normalize_activations") == "expected_average_only_in":
        if get_norm_scaling_factor(release, sae_id) is None:
            raise SaeError(f"{release}/{sae_id} lacks the norm that its input is scaled by.")
        folded["normalize_activations"] = "none"  # SAELens folds it in from its directory
    site = check_config(f"{release}/{sae_id}", folded)
    return SaeSource(
        site=site,
        name=f"{release}/{sae_id}",
        architecture=str(config["architecture"]),
        d_sae=int(config["d_sae"]),
        width=int(config["d_in"]),
        model_name=metadata.get("model_name"),
        prepend_bos=metadata.get("prepend_bos"),
        sha256="",
        load=partial(_load_release, release, sae_id),
        neuronpedia=metadata.get("neuronpedia_id"),
        centred=is_centred(config, site),
    )


def _check_release(release: str, sae_id: str) -> None:
    """Raise `SaeError` for what must not be loaded, or not onto the model as published."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    entry = get_pretrained_saes_directory()[release]
    path = str(entry.saes_map[sae_id])
    if path.endswith(_PICKLES) or entry.conversion_func in _PICKLED:
        raise SaeError(
            f"{release} publishes pickled weights, which can run code when they are read and are "
            "never loaded: convert them to safetensors, and give their folder."
        )


def _load_release(release: str, sae_id: str, device: torch.device) -> Any:
    from sae_lens import SAE

    try:
        return SAE.from_pretrained(release, sae_id, device=str(device), dtype="float32")
    except (OSError, ValueError, KeyError) as error:
        raise _not_from_hub(f"{release}/{sae_id}", error) from error


def _not_from_hub(name: str, error: Exception) -> SaeError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return SaeError(
        f"{name} could not be read from the hub: {reason} Without a network, give the folder of "
        "SAEs that are here."
    )
