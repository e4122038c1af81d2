"""Tiny random models of each architecture, and a tokenizer made on the spot.

Weights are drawn wide enough that every layer matters to the logits; with the usual initialisation
a tiny model is almost linear and hides mistakes.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from circuits.models.hooked import HookedModel
from circuits.models.load import load_model

VOCAB = 97
_WORDS = ("the a cat dog sat ran on under mat log and then it was red blue one two three .").split()


def tokenizer(*more: str) -> Any:
    """A word-level tokenizer over a handful of words, without a beginning-of-text token.

    more: words it should know besides.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<unk>", *_WORDS, *more]
    words += [f"w{i}" for i in range(VOCAB - len(words))]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _saved(PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>"))


def byte_tokenizer() -> Any:
    """A tokenizer with one token a byte, so that texts of any kind come back whole."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return _saved(PreTrainedTokenizerFast(tokenizer_object=raw))


def _saved(made: Any) -> Any:
    """Loaded from a folder, whose name TransformerLens asks for."""
    with tempfile.TemporaryDirectory() as folder:
        made.save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder)


def _shared(layers: int, heads: int, width: int, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }


def hugging_face(
    kind: str, *, layers: int = 4, heads: int = 4, width: int = 32, seed: int = 0
) -> Any:
    """A random Hugging Face model; kind is llama, gemma2, gpt2, pythia or qwen2."""
    torch.manual_seed(seed)
    wide = {"initializer_range": 0.2}
    if kind == "llama":
        settings = _shared(layers, heads, width, num_key_value_heads=heads // 2, **wide)
        model = LlamaForCausalLM(LlamaConfig(**settings))
    elif kind == "gemma2":
        # The window is shorter than the prompts, so that it matters.
        settings = _shared(layers, heads, width, num_key_value_heads=heads // 2, **wide)
        extra = {"head_dim": width // heads, "sliding_window": 5, "query_pre_attn_scalar": 8}
        model = Gemma2ForCausalLM(Gemma2Config(**settings, **extra))
    elif kind == "gpt2":
        config = GPT2Config(
            vocab_size=VOCAB, n_embd=width, n_layer=layers, n_head=heads, n_positions=64, **wide
        )
        config.bos_token_id, config.eos_token_id = 1, 2
        model = GPT2LMHeadModel(config)
    elif kind == "pythia":
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**_shared(layers, heads, width), **wide))
    elif kind == "qwen2":
        settings = _shared(layers, heads, width, num_key_value_heads=heads // 2, **wide)
        model = Qwen2ForCausalLM(Qwen2Config(**settings))
    else:
        raise ValueError(kind)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name or "ln_" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


ARCHITECTURES = ("llama", "gemma2", "gpt2", "pythia", "qwen2")


def bridge(kind: str, dtype: torch.dtype = torch.float32, **shape: Any) -> HookedModel:
    """A tiny model behind a TransformerBridge."""
    return load_model(hugging_face(kind, **shape).to(dtype), tokenizer=tokenizer(), name=kind)


def hooked_transformer(
    *,
    parallel: bool = False,
    layers: int = 4,
    heads: int = 4,
    width: int = 32,
    seed: int = 0,
    position: str = "rotary",
) -> HookedModel:
    """A tiny random `HookedTransformer`."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=layers,
        d_model=width,
        n_ctx=64,
        d_head=width // heads,
        n_heads=heads,
        d_mlp=2 * width,
        d_vocab=VOCAB,
        act_fn="gelu",
        normalization_type="LN",
        positional_embedding_type=position,
        rotary_dim=width // heads if position == "rotary" else None,
        parallel_attn_mlp=parallel,
        seed=seed,
        initializer_range=0.2,
        device="cpu",
    )
    return load_model(HookedTransformer(config), name="hooked_transformer")
