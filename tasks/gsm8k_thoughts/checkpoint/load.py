"""`load_codi`: a published checkpoint, or one laid out like it, as a `HookedModel`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from circuits.models.hooked import HookedModel
from circuits.models.load import find_device, find_dtype, load_model, sha256_of_weights
from tasks.gsm8k_thoughts.checkpoint.files import READ, CheckpointError, read_tensors
from tasks.gsm8k_thoughts.checkpoint.tokens import (
    ANSWER_PREFIX,
    NEW_TOKENS,
    CodiTokens,
    add_tokens,
    make_tokens,
)
from tasks.gsm8k_thoughts.checkpoint.weights import (
    fill_model,
    make_projection,
    split_tensors,
    vocabulary_size,
)
from tasks.gsm8k_thoughts.projection import Projection

# The base model of each published checkpoint.
PUBLISHED = {
    "zen-E/CODI-gpt2": "gpt2",
    "zen-E/CODI-llama3.2-1b-Instruct": "meta-llama/Llama-3.2-1B-Instruct",
}


@dataclass(frozen=True)
class Codi:
    """A model that reasons in continuous thoughts.

    model: the language model, LoRA merged; `model.sha256` covers the projection too. projection:
    from the final-norm hidden state at one position to the next input embedding, [..., d_model] ->
    [..., d_model], on the model's device and in its type. tokens: where the thoughts stand.
    """

    model: HookedModel
    projection: Projection
    tokens: CodiTokens


def load_codi(
    source: str | Path,
    *,
    base: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    lora_alpha: int | float = 32,
    lora_rank: int = 128,
    thoughts: int = 6,
    remove_eos: bool = True,
    answer_prefix: str = ANSWER_PREFIX,
) -> Codi:
    """Load a CODI checkpoint (Shen et al. 2025, arXiv:2502.21074) and check it.

    source: a name on the Hugging Face hub (`PUBLISHED` has the authors' own), or a local folder
        with `model.safetensors` or `pytorch_model.bin` (also in shards); see
        `tasks.gsm8k_thoughts.checkpoint.files` for what is read and what is refused.
    base: the model that CODI was trained from, a folder or a name on the hub. Only its
        configuration and tokenizer are read: all weights are in the checkpoint. None takes the one
        known for a published name, else `config.json` and tokenizer in the checkpoint's folder.
    device, dtype: as in `circuits.load_model`; the LoRA is merged before rounding to a type
        shorter than float32.
    lora_alpha, lora_rank: as in training. The rank is checked; alpha cannot be seen in the weights.
    thoughts: how many the model was trained with.
    remove_eos: False for models trained with end-of-text tokens before bot and after eot.
    answer_prefix: what the model was trained to say between eot and the number.

    The defaults are the settings of both published models. Norms are not folded: the projection
    reads the output of the final norm. Raises `CheckpointError`, which names the keys or files that
    are not as they should be.
    """
    place, kind = find_device(device), find_dtype(dtype or "float32")
    if lora_rank < 1 or not lora_alpha > 0:
        raise CheckpointError(f"lora_rank={lora_rank}, lora_alpha={lora_alpha}: both are positive.")
    known = PUBLISHED.get(str(source)) if base is None else str(base)
    if known is not None:  # what is wrong with the base is told before gigabytes are fetched
        config, tokenizer = _base(known)
        folder = _folder(str(source))
    else:
        folder = _folder(str(source))
        config, tokenizer = _base_of(folder, str(source))
    tensors = read_tensors(folder)
    vocabulary = config.vocab_size
    config.vocab_size = vocabulary + len(NEW_TOKENS)
    model = _empty(config, kind)
    _check_rows(vocabulary_size(tensors, model), vocabulary)
    weights, projecting = split_tensors(tensors)
    projection = make_projection(projecting, model.get_input_embeddings().embedding_dim)
    fill_model(model, weights, alpha=lora_alpha, rank=lora_rank)
    add_tokens(tokenizer, vocabulary)
    tokens = make_tokens(
        tokenizer,
        vocabulary,
        thoughts=thoughts,
        remove_eos=remove_eos,
        answer_prefix=answer_prefix,
    )
    projection.to(device=place, dtype=kind)
    name = folder.name if Path(source).is_dir() else str(source)
    hooked = load_model(model.to(place), tokenizer=tokenizer, name=name)
    both = hooked.sha256 + sha256_of_weights(projection)
    hooked.sha256 = hashlib.sha256(both.encode()).hexdigest()
    return Codi(hooked, projection, tokens)


def _folder(source: str) -> Path:
    path = Path(source)
    if path.is_dir():
        return path.resolve()
    if path.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise CheckpointError(
            f"the checkpoint {source!r} is no folder that is here and no name on the hub: expected "
            f"a folder with {' or '.join(READ)}, or one of {', '.join(PUBLISHED)}."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    wanted = ["model*.safetensors", "pytorch_model*.bin", "*.index.json", "*.json", "*.txt"]
    try:
        return Path(snapshot_download(source, allow_patterns=wanted))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise CheckpointError(
            f"the checkpoint {source!r} could not be fetched from the hub: {_reason(error)} It "
            "needs a network once; without one, copy its folder here and give the folder, with "
            "base= the folder of its base model's configuration and tokenizer."
        ) from error


def _base_of(folder: Path, source: str) -> tuple[Any, Any]:
    """Configuration and tokenizer in the checkpoint's own folder."""
    # Some checkpoints come with a config.json that is empty.
    if not _has_config(folder):
        raise CheckpointError(
            f"{source} does not say which model it was trained from (no config.json with a "
            "model_type): give base=, such as base='gpt2' or the folder of that model, or put that "
            "model's config.json and tokenizer files beside the weights."
        )
    return _base(str(folder))


def _base(name: str) -> tuple[Any, Any]:
    """Configuration and tokenizer of the base model."""
    from transformers import AutoConfig, AutoTokenizer

    if name.startswith((".", "/", "~")) and not Path(name).is_dir():
        raise CheckpointError(f"the base model's folder {name} does not exist.")
    try:
        return AutoConfig.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"configuration and tokenizer of the base model {name!r} could not be loaded: "
            f"{_reason(error)} They need a network once (and an account for gated models such as "
            "Llama); without one, give base= a folder that has config.json and the tokenizer."
        ) from error


def _has_config(folder: Path) -> bool:
    try:
        return "model_type" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, TypeError):
        return False


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{lines[0].rstrip('.')}." if lines else f"{type(error).__name__}."


def _empty(config: Any, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    # All weights are overwritten: drawing them must not move the caller's random numbers.
    with torch.random.fork_rng(devices=[]):
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="eager"
        )
    return model.eval()


def _check_rows(rows: int | None, vocabulary: int) -> None:
    if rows is not None and rows != vocabulary + len(NEW_TOKENS):
        raise CheckpointError(
            f"the checkpoint's embedding has {rows} rows, but the base model's vocabulary of "
            f"{vocabulary} and {len(NEW_TOKENS)} new tokens make {vocabulary + len(NEW_TOKENS)}: "
            "it was trained from another base model (base=...)."
        )
