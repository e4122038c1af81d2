"""SAEs in local folders, in the formats that SAEs are published in.

Folders are searched for SAEs of three formats: SAELens (`cfg.json`), Gemma Scope (`params.npz`) and
Llama Scope (`hyperparams.json`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from circuits.runs import sha256_of
from circuits.saes.collection import SaeSource
from circuits.saes.sae import SaeError
from circuits.sites import Site, SiteError

ARCHITECTURES = ("standard", "gated", "topk", "jumprelu")
# Of TransformerLens' processing of weights, what changes z.
_CHANGES = ("fold_value_biases", "refactor_factored_attn_matrices")
_PICKLES = (".pt", ".pth", ".pkl", ".bin", ".ckpt")
# Normalisations that need nothing but the input itself.
NORMALISATIONS = ("none", None, "layer_norm", "constant_norm_rescale")
_GEMMA_RELEASE = re.compile(r"gemma-scope-(?P<model>.+)-(?P<site>res|att|mlp|transcoders)")
_GEMMA_HOOKS = {"res": "hook_resid_post", "att": "attn.hook_z", "mlp": "hook_mlp_out"}
_GEMMA, _LLAMA, _SAELENS = "params.npz", "hyperparams.json", "cfg.json"


def in_folder(path: Path, layers: Sequence[int] | None) -> Iterable[SaeSource]:
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


def check_config(name: str, config: dict[str, Any]) -> Site:
    """The site of a configuration; raises for what would give wrong numbers without a word."""
    metadata = config.get("metadata") or {}
    architecture = str(config.get("architecture", "standard"))
    if architecture not in ARCHITECTURES:
        kind = "a transcoder" if "transcoder" in architecture else "not supported"
        raise SaeError(
            f"{name} has the architecture {architecture!r}, which is {kind}: expected one of "
            f"{', '.join(ARCHITECTURES)}."
        )
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
    # Folding the norms changes no site; centring is undone exactly (`Sae`).
    changed = [key for key in _CHANGES if wanted.get(key)]
    if changed and site.kind == "z":
        raise SaeError(
            f"{name} was trained on a model whose weights were changed by TransformerLens "
            f"({', '.join(changed)}); on the model as published its latents would be wrong."
        )
    return site


def is_centred(config: dict[str, Any], site: Site) -> bool:
    """Whether the SAE was trained where every write to the stream has mean 0 over d_model."""
    metadata = config.get("metadata") or {}
    wanted = metadata.get("model_from_pretrained_kwargs") or {}
    return bool(wanted.get("center_writing_weights")) and site.kind != "z"


def _source(
    file: Path,
    config: dict[str, Any],
    weights: Path,
    load: Callable[[torch.device], Any],
    layers: Sequence[int] | None,
) -> SaeSource | None:
    """None for a layer that is not wanted, before its weights are read."""
    metadata = config.get("metadata") or {}
    site = check_config(str(file), config)
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
        sha256=_checked(weights),
        load=load,
        neuronpedia=metadata.get("neuronpedia_id"),
        centred=is_centred(config, site),
    )


def _checked(weights: Path) -> str:
    """SHA-256 of a file of weights; raises `SaeError` for values that are not finite."""
    try:
        if weights.suffix == ".npz":
            with np.load(weights, allow_pickle=False) as arrays:
                wrong = [name for name in arrays if not np.isfinite(arrays[name]).all()]
        else:
            with safe_open(weights, "pt") as file:
                wrong = [n for n in file.keys() if not torch.isfinite(file.get_tensor(n)).all()]  # noqa: SIM118
    except (OSError, ValueError, SafetensorError, BadZipFile) as error:
        raise SaeError(f"{weights} cannot be read ({error}).") from error
    if wrong:
        raise SaeError(f"{weights} has non-finite values in {', '.join(wrong)}.")
    return sha256_of(weights)


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
    except (ValueError, KeyError, OSError, BadZipFile) as error:
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
