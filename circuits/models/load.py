"""`load_model`: a model by name, by folder, or from an object that is already in memory."""

from __future__ import annotations

import difflib
import hashlib
import logging
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from circuits.models.adapters import ModelError
from circuits.models.check import check_model
from circuits.models.embedded import EMBEDDED_NAME, embedded_model_folder
from circuits.models.hooked import HookedModel
from circuits.runs import sha256_of

log = logging.getLogger(__name__)

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def load_model(
    model: Any = None,
    *,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    name: str | None = None,
) -> HookedModel:
    """Load a model and check it (`circuits.models.check`).

    model: None or "embedded" for the embedded default (SmolLM2-135M-Instruct, 4-bit weights); the
        name of a model on the Hugging Face hub or of TransformerLens; a local folder in Hugging
        Face format; or an object: a `TransformerBridge`, a `HookedTransformer`, or a Hugging Face
        model together with `tokenizer`.
    device: "cpu", "cuda", "cuda:1", ...; None takes a GPU when there is one.
    dtype: float32 (None), bfloat16, float16 or float64.
    name: how records call a model given as an object.

    Objects keep their device and type, for which device and dtype must be None. They are used as
    they are and changed: gradients of their parameters are switched off, and a Hugging Face model
    gets TransformerLens' hooks into its layers and explicit ("eager") attention.
    Raises `ModelError` when there is no such model, folder, device or type, when the model is not
    causal, and for options that contradict each other.
    """
    if model is None or isinstance(model, (str, Path)):
        place, kind = find_device(device), find_dtype(dtype or "float32")
        return _load_named(str(model or EMBEDDED_NAME), tokenizer, place, kind)
    if device is not None or dtype is not None:
        raise ModelError(
            "device and dtype are for models loaded by name; an object keeps its own: move it with "
            "model.to(device, dtype) before."
        )
    if tokenizer is not None:
        tokenizer = with_folder(tokenizer)
    if _is_hugging_face(model):
        if tokenizer is None:
            raise ModelError(
                "a Hugging Face model object needs its tokenizer: load_model(model, tokenizer=...)."
            )
        bridge = _bridge(model, tokenizer, name or _name_of(model))
    else:
        bridge, tokenizer = model, tokenizer or getattr(model, "tokenizer", None)
    hooked = HookedModel(bridge, name=name or _name_of(model), tokenizer=tokenizer)
    hooked.sha256 = sha256_of_weights(bridge)
    return _checked(hooked)


def find_device(device: str | torch.device | None) -> torch.device:
    """The device that `device` names; raises `ModelError` when this machine does not have it."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"unknown device {device!r}: expected cpu, cuda or cuda:N.") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device {device!r} is asked for, but PyTorch sees no GPU: use cpu.")
    try:
        torch.empty(0, device=found)
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"device {device!r} cannot be used on this machine: {reason}") from error
    return found


def find_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The type that `dtype` names; raises `ModelError` for an unknown one."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}: expected one of {', '.join(DTYPES)}.")
    return DTYPES[dtype]


def _load_named(name: str, tokenizer: Any, device: torch.device, dtype: torch.dtype) -> HookedModel:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    source, shown = _resolve(name)
    noisy = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        # Attention is computed by the Bridge, which needs the explicit mask of "eager".
        hf_model: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, attn_implementation="eager"
        )
        tokenizer = with_folder(tokenizer) if tokenizer else AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(_not_loaded(name, source, error)) from error
    finally:
        if noisy:
            transformers_logging.enable_progress_bar()
    digest = _sha256_of_source(source)
    bridge = _bridge(hf_model.to(device), tokenizer, source)
    return _checked(HookedModel(bridge, name=shown, sha256=digest, tokenizer=tokenizer))


def _checked(model: HookedModel) -> HookedModel:
    found = check_model(model)
    if not found.resumes:
        log.warning(
            "%s: resuming from a layer does not agree with the full forward (%s): full forwards "
            "are used, which is right but slower",
            model.name,
            found.failure or f"off by {found.resume_error:.2g}, {found.allowed:.2g} is allowed",
        )
    return model


def _resolve(name: str) -> tuple[str, str]:
    """Where to load from, and how the model is called."""
    if name in (EMBEDDED_NAME, "embedded"):
        return str(embedded_model_folder()), EMBEDDED_NAME
    path = Path(name)
    if path.exists():
        if not (path / "config.json").is_file():
            raise ModelError(f"{name} is not a model folder: it has no config.json.")
        return str(path), path.resolve().name
    if name.startswith((".", "/", "~")):
        raise ModelError(f"the model folder {name} does not exist.")
    return official_name(name), name


def official_name(name: str) -> str:
    """TransformerLens has short names (`gpt2-small`) for what the hub calls otherwise (`gpt2`)."""
    from transformer_lens.supported_models import MODEL_ALIASES

    for official, aliases in MODEL_ALIASES.items():
        if name in aliases:
            return official
    return name


def _not_loaded(name: str, source: str, error: Exception) -> str:
    from transformer_lens.supported_models import MODEL_ALIASES

    known = [
        EMBEDDED_NAME,
        *MODEL_ALIASES,
        *(a for aliases in MODEL_ALIASES.values() for a in aliases),
    ]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.7)
    hint = f" Similar names: {', '.join(near)}." if near and name not in near else ""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if Path(source).is_dir():
        return (
            f"the model folder {name} could not be loaded: {reason} It needs whole weights "
            "(*.safetensors), config.json, and the tokenizer's files."
        )
    return (
        f"the model {name!r} could not be loaded from {source!r}: {reason}{hint} Names of the hub "
        "need a network (and an account for gated models); without one, use the embedded model or "
        "a local folder."
    )


def _is_hugging_face(model: Any) -> bool:
    from transformers import PreTrainedModel

    return isinstance(model, PreTrainedModel)


def _name_of(model: Any) -> str:
    config = getattr(model, "config", None) or getattr(model, "cfg", None)
    for key in ("_name_or_path", "model_name"):
        if value := getattr(config, key, None):
            return str(value)
    return type(model).__name__


def _bridge(hf_model: Any, tokenizer: Any, name: str) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    if hf_model.config._attn_implementation != "eager":
        hf_model.set_attn_implementation("eager")
    return TransformerBridge.boot_transformers(
        name,
        hf_model=hf_model,
        tokenizer=tokenizer,
        dtype=next(hf_model.parameters()).dtype,
        device=str(next(hf_model.parameters()).device),
    )


def with_folder(tokenizer: Any) -> Any:
    """The tokenizer itself when it was loaded from somewhere; else saved to a folder and loaded
    back, because TransformerLens asks for `name_or_path`."""
    if getattr(tokenizer, "name_or_path", ""):
        return tokenizer
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory(prefix="circuits-tokenizer-") as folder:
        tokenizer.save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder)


def _sha256_of_source(source: str) -> str:
    """One digest over the weight files, in the order of their names."""
    folder = Path(source) if Path(source).is_dir() else _snapshot(source)
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    digests = [_sha256_of_weight_file(path) for path in weights]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _sha256_of_weight_file(path: Path) -> str:
    # The hub's cache keeps large files under their SHA-256 and links to them.
    target = path.resolve().name
    return target if re.fullmatch(r"[0-9a-f]{64}", target) else sha256_of(path)


def _snapshot(name: str) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            name, local_files_only=True, allow_patterns=["*.safetensors", "*.bin", "config.json"]
        )
    )


def sha256_of_weights(module: torch.nn.Module) -> str:
    """A digest of a model in memory: names, types and bytes of its parameters, sorted by name."""
    digest = hashlib.sha256()
    for key, value in sorted(module.named_parameters(), key=lambda item: item[0]):
        digest.update(f"{key}:{value.dtype}:{tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
