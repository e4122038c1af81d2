"""Finding SAEs: a SAELens release, or a local folder in a format that SAEs are published in.

Local folders are searched for SAEs of three formats: SAELens (`cfg.json`), Gemma Scope
(`params.npz`) and Llama Scope (`hyperparams.json`). Everything that can be wrong about them is
looked at before any model pass.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from circuits.models.hooked import HookedModel
from circuits.runs import sha256_of
from circuits.saes.collection import SaeSet, SaeSource
from circuits.saes.sae import SaeError
from circuits.sites import Site, SiteError

ARCHITECTURES = ("standard", "gated", "topk", "jumprelu")
_PICKLES = (".pt", ".pth", ".pkl", ".bin", ".ckpt")
# Normalisations that need nothing but the input itself.
NORMALISATIONS = ("none", None, "layer_norm", "constant_norm_rescale")
_GEMMA_RELEASE = re.compile(r"gemma-scope-(?P<model>.+)-(?P<site>res|att|mlp|transcoders)")
_GEMMA_HOOKS = {"res": "hook_resid_post", "att": "attn.hook_z", "mlp": "hook_mlp_out"}
_GEMMA, _LLAMA, _SAELENS = "params.npz", "hyperparams.json", "cfg.json"


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

    name: a SAELens release (`gemma-scope-2b-pt-res-canonical`, `llama_scope_lxr_8x`, ...), or a
        local folder with one or more SAEs.
    layers: which layers; all there are by default.
    l0: of the ids a release has for a site, the one whose average L0 is closest.
    width: of the ids a release has for a site, those of this width; None where ids name none, and
        16k where they do. l0 and width are for releases only.
    memory: most bytes of weights on the device at once.

    Raises `SaeError` when there are none, when several fit one site, for transcoders, pickled
    weights, normalisations that are not in the files, and for SAEs whose site or width the model
    does not have. Non-finite weights raise when an SAE is first used.
    """
    path = Path(name)
    if path.exists() and (l0 is not None or width is not None):
        raise SaeError("l0 and width choose among a release's SAEs; a folder has those it has.")
    found = _in_folder(path, layers) if path.exists() else _in_release(str(name), layers, l0, width)
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
        chosen[source.site] = source
    if not chosen:
        wanted = "" if layers is None else f" for layers {', '.join(map(str, layers))}"
        raise SaeError(f"{name} has no SAEs{wanted}.")
    return SaeSet(chosen, model.device, memory)


def _check_fit(source: SaeSource, model: HookedModel) -> None:
    if source.architecture not in ARCHITECTURES:
        kind = "a transcoder" if "transcoder" in source.architecture else "not supported"
        raise SaeError(
            f"{source.name} has the architecture {source.architecture!r}, which is {kind}: "
            f"expected one of {', '.join(ARCHITECTURES)}."
        )
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


def _in_folder(path: Path, layers: Sequence[int] | None) -> Iterable[SaeSource]:
    makers: dict[str, Callable[[Path, Sequence[int] | None], SaeSource | None]] = {
        _SAELENS: _sae_lens_source,
        _GEMMA: _gemma_source,
        _LLAMA: _llama_source,
    }
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    known = [file for file in files if file.name in makers and "embedding" not in file.parts]
    found = [source for file in known if (source := makers[file.name](file, layers)) is not None]
    if not known:
        pickled = [file.name for file in files if file.suffix in _PICKLES]
        if pickled:
            raise SaeError(
                f"{path} holds pickled weights ({pickled[0]}), which can run code when they are "
                "read and are never loaded: convert them to safetensors."
            )
        raise SaeError(
            f"{path} holds no SAE: expected {_SAELENS} with sae_weights.safetensors (SAELens), "
            f"{_GEMMA} (Gemma Scope), or {_LLAMA} with checkpoints/final.safetensors (Llama Scope)."
        )
    return found


def _check_config(name: str, config: dict[str, Any]) -> Site:
    """The site of a configuration; raises for what would give wrong numbers without a word."""
    metadata = config.get("metadata") or {}
    hook = metadata.get("hook_name") or config.get("hook_name") or ""
    try:
        site = Site.parse(str(hook))
    except SiteError as error:
        raise SaeError(f"{name} reads an unknown hook: {error}") from error
    if config.get("normalize_activations", "none") not in NORMALISATIONS:
        raise SaeError(
            f"{name} wants its input normalised by {config['normalize_activations']!r}, whose "
            "statistics are not stored with it: fold them in (SAELens: "
            "fold_activation_norm_scaling_factor, fold_activation_whitening) and save it again."
        )
    wanted = metadata.get("model_from_pretrained_kwargs") or {}
    changed = [key for key in ("center_writing_weights", "fold_ln") if wanted.get(key)]
    if changed:
        raise SaeError(
            f"{name} was trained on a model whose weights were changed by TransformerLens "
            f"({', '.join(changed)}); on the model as published its latents would be wrong."
        )
    return site


def _source(
    file: Path,
    config: dict[str, Any],
    weights: Path,
    load: Callable[[torch.device], Any],
    layers: Sequence[int] | None,
) -> SaeSource | None:
    """None for a layer that is not wanted, before its weights are read."""
    metadata = config.get("metadata") or {}
    site = _check_config(str(file), config)
    if layers is not None and site.layer not in layers:
        return None
    return SaeSource(
        site=site,
        name=str(file.parent),
        architecture=str(config["architecture"]),
        d_sae=int(config["d_sae"]),
        width=int(config["d_in"]),
        model_name=metadata.get("model_name"),
        prepend_bos=metadata.get("prepend_bos"),
        sha256=sha256_of(weights),
        load=load,
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SaeError(f"{file} is not JSON ({error}).") from error
    if not isinstance(found, dict):
        raise SaeError(f"{file} holds no configuration of an SAE.")
    return found


def _sae_lens_source(file: Path, layers: Sequence[int] | None) -> SaeSource | None:
    from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting

    raw = _read_json(file)
    missing = {"d_in", "d_sae", "architecture"} - raw.keys()
    weights = file.parent / "sae_weights.safetensors"
    if missing or not weights.is_file():
        what = f"{', '.join(sorted(missing))} in {file.name}" if missing else weights.name
        raise SaeError(f"{file.parent} is not a SAELens SAE: it lacks {what}.")
    # Other architectures are refused later, by their name.
    config = handle_config_defaulting(raw) if raw["architecture"] in ARCHITECTURES else raw
    return _source(file, config, weights, partial(_load_sae_lens, file.parent), layers)


def _load_sae_lens(folder: Path, device: torch.device) -> Any:
    from sae_lens import SAE

    return SAE.load_from_disk(folder, device=str(device), dtype="float32")


def _gemma_source(file: Path, layers: Sequence[int] | None) -> SaeSource | None:
    """Gemma Scope's `gemma-scope-2b-pt-res/layer_N/width_W/average_l0_L/params.npz`: the file does
    not say where it belongs, so its path must keep the release's name and the layer."""
    parts = list(reversed(file.resolve().parts))
    layer = next((m for p in parts if (m := re.fullmatch(r"layer_(\d+)", p))), None)
    release = next((m for p in parts if (m := _GEMMA_RELEASE.fullmatch(p))), None)
    if layer is None or release is None or release["site"] not in _GEMMA_HOOKS:
        raise SaeError(
            f"{file}: the path must hold the release's name and the layer, such as "
            "gemma-scope-2b-pt-res/layer_12, because the file does not say where it belongs; "
            "transcoders are not supported."
        )
    if layers is not None and int(layer[1]) not in layers:
        return None
    try:
        with np.load(file, allow_pickle=False) as arrays:
            d_in, d_sae = arrays["W_enc"].shape
    except (ValueError, KeyError, OSError) as error:
        raise SaeError(f"{file} is not a Gemma Scope SAE ({error}).") from error
    hook = _GEMMA_HOOKS[release["site"]]
    config = {
        "architecture": "jumprelu",
        "d_in": d_in,
        "d_sae": d_sae,
        "apply_b_dec_to_input": False,
        "metadata": {
            "hook_name": f"blocks.{layer[1]}.{hook}",
            "model_name": f"gemma-2-{release['model']}".removesuffix("-pt"),
            "prepend_bos": True,
        },
    }
    return _source(file, config, file, partial(_load_gemma, file, config), layers)


def _load_gemma(file: Path, config: dict[str, Any], device: torch.device) -> Any:
    with np.load(file, allow_pickle=False) as arrays:
        weights = {key: torch.from_numpy(arrays[key]).float() for key in arrays}
    return _make_jumprelu(config, weights, device)


def _llama_source(file: Path, layers: Sequence[int] | None) -> SaeSource | None:
    raw = _read_json(file)
    weights = file.parent / "checkpoints" / "final.safetensors"
    needed = ("d_model", "d_sae", "hook_point_in", "jump_relu_threshold")
    missing = [key for key in (*needed, "dataset_average_activation_norm") if key not in raw]
    if missing or not weights.is_file():
        what = (
            f"{', '.join(missing)} in {file.name}" if missing else "checkpoints/final.safetensors"
        )
        raise SaeError(f"{file.parent} is not a Llama Scope SAE: it lacks {what}.")
    if raw.get("hook_point_out", raw["hook_point_in"]) != raw["hook_point_in"]:
        raise SaeError(
            f"{file.parent} reads {raw['hook_point_in']} and writes {raw['hook_point_out']}: it is "
            "a transcoder, and only SAEs are supported."
        )
    config = {
        "architecture": "jumprelu",
        "d_in": raw["d_model"],
        "d_sae": raw["d_sae"],
        "apply_b_dec_to_input": False,
        "metadata": {
            "hook_name": raw["hook_point_in"],
            "model_name": "Llama-3.1-8B",
            "prepend_bos": True,
        },
    }
    return _source(file, config, weights, partial(_load_llama, weights, config, raw), layers)


def _load_llama(
    file: Path, config: dict[str, Any], raw: dict[str, Any], device: torch.device
) -> Any:
    from safetensors.torch import load_file

    stored = {key: value.float() for key, value in load_file(file).items()}
    # It was trained on inputs scaled to norm sqrt(d); the scale is folded into the weights.
    scale = config["d_in"] ** 0.5 / raw["dataset_average_activation_norm"]["in"]
    weights = {
        "W_enc": stored["encoder.weight"].T * scale,
        "W_dec": stored["decoder.weight"].T / scale,
        "b_enc": stored["encoder.bias"],
        "b_dec": stored["decoder.bias"] / scale,
        "threshold": torch.full((config["d_sae"],), float(raw["jump_relu_threshold"]) * scale),
    }
    return _make_jumprelu(config, weights, device)


def _make_jumprelu(
    config: dict[str, Any], weights: dict[str, torch.Tensor], device: torch.device
) -> Any:
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

    settings = {k: config[k] for k in ("d_in", "d_sae", "apply_b_dec_to_input")}
    sae = JumpReLUSAE(JumpReLUSAEConfig(**settings))
    try:
        sae.load_state_dict({k: v.contiguous() for k, v in weights.items()})
    except RuntimeError as error:
        raise SaeError(f"the weights do not fit together: {error}") from error
    return sae.to(device)


def _in_release(
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
    return SaeSource(
        site=_check_config(f"{release}/{sae_id}", folded),
        name=f"{release}/{sae_id}",
        architecture=str(config["architecture"]),
        d_sae=int(config["d_sae"]),
        width=int(config["d_in"]),
        model_name=metadata.get("model_name"),
        prepend_bos=metadata.get("prepend_bos"),
        sha256="",
        load=partial(_load_release, release, sae_id),
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
