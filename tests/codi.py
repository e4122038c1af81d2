"""CODI checkpoints in the published layout, and what plain Hugging Face models with LoRA unmerged
make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from tasks.gsm8k_thoughts.checkpoint import Codi, load_codi
from tests import tiny

RANK, ALPHA, WIDTH = 4, 8, 24


WORDS = ("The", "answer", "is:", "3", "7")


QUESTION = (5, 9, 14, 2, 30, 7)


TARGETS = {
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}


class Made:
    """A CODI as it stands after training: a base model, LoRA beside its layers, a projection."""

    def __init__(self, kind: str, *, tied: bool = True, seed: int = 0) -> None:
        self.model = tiny.hugging_face(kind, layers=3, seed=seed)
        self.model.config.tie_word_embeddings = tied
        self.config = self.model.config.to_dict()
        if tied:
            self.model.tie_weights()
        self.model.resize_token_embeddings(tiny.VOCAB + 3, mean_resizing=False)
        width = self.model.get_input_embeddings().embedding_dim
        self.lora: dict[str, tuple[Tensor, Tensor]] = {}
        for name, module in self.model.named_modules():
            if name.rpartition(".")[2] in TARGETS[kind]:
                shape = module.weight.shape if kind == "gpt2" else module.weight.shape[::-1]
                self.lora[name] = (
                    0.3 * torch.randn(RANK, shape[0]),
                    0.3 * torch.randn(shape[1], RANK),
                )
        self.prj = {
            "1.weight": 0.3 * torch.randn(WIDTH, width),
            "1.bias": 0.3 * torch.randn(WIDTH),
            "3.weight": 0.3 * torch.randn(width, WIDTH),
            "3.bias": 0.3 * torch.randn(width),
            "ln.weight": 1 + 0.3 * torch.randn(width),
            "ln.bias": 0.3 * torch.randn(width),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Under the names that training saves them by."""
        found = {f"prj.{k}": v for k, v in self.prj.items()}
        for key, value in self.model.state_dict().items():
            layer, _, part = key.rpartition(".")
            name = f"{layer}.base_layer.{part}" if layer in self.lora else key
            found[f"codi.base_model.model.{name}"] = value.clone()
        for layer, (down, up) in self.lora.items():
            found[f"codi.base_model.model.{layer}.lora_A.default.weight"] = down
            found[f"codi.base_model.model.{layer}.lora_B.default.weight"] = up
        return found

    def base(self, folder: Path) -> Path:
        """A folder with configuration and tokenizer of the base model, and no weights."""
        type(self.model.config).from_dict(self.config).save_pretrained(folder)
        tiny.tokenizer(*WORDS).save_pretrained(folder)
        return folder

    @torch.no_grad()
    def by_hand(self, before: list[int], after: list[int]) -> tuple[Tensor, Tensor]:
        """Logits from `after` on, and the six thoughts: stepped with the cache, LoRA unmerged."""
        handles = []
        for name, (down, up) in self.lora.items():

            def add(_: Any, given: Any, out: Tensor, a: Tensor = down, b: Tensor = up) -> Tensor:
                return out + ALPHA / RANK * (given[0] @ a.T @ b.T)

            handles.append(self.model.get_submodule(name).register_forward_hook(add))
        out = self.model(torch.tensor([before]), use_cache=True, output_hidden_states=True)
        thoughts = []
        for _ in range(6):
            thoughts.append(self._project(out.hidden_states[-1][:, -1:]))
            out = self.model(
                inputs_embeds=thoughts[-1],
                past_key_values=out.past_key_values,
                use_cache=True,
                output_hidden_states=True,
            )
        embedded = self.model.get_input_embeddings()(torch.tensor([after]))
        out = self.model(inputs_embeds=embedded, past_key_values=out.past_key_values)
        for handle in handles:
            handle.remove()
        return out.logits, torch.cat(thoughts, 1)

    def _project(self, hidden: Tensor) -> Tensor:
        p = self.prj
        inner = functional.gelu(hidden @ p["1.weight"].T + p["1.bias"])
        outer = inner @ p["3.weight"].T + p["3.bias"]
        return functional.layer_norm(outer, outer.shape[-1:], p["ln.weight"], p["ln.bias"])


def write(tensors: dict[str, Tensor], folder: Path, name: str = "model.safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    if name.endswith(".bin"):
        torch.save(tensors, folder / name)
    else:
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / name)
    return folder


def load(folder: Path, base: Path, **options: Any) -> Codi:
    given = {"lora_alpha": ALPHA, "lora_rank": RANK, "device": "cpu"}
    return load_codi(folder, base=base, **{**given, **options})
