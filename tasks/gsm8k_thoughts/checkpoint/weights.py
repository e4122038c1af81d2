"""From the names and the LoRA of a published checkpoint to plain weights of the base model.

CODI saves its whole training module: the base model inside PEFT's wrapper under
`codi.base_model.model.`, and the projection under `prj.`. A linear layer X with LoRA is saved as
`X.base_layer.weight`, `X.lora_A.default.weight` [rank, in] and `X.lora_B.default.weight`
[out, rank]; it computes x W^T + alpha/rank x A^T B^T, so that W += alpha/rank B A is the same layer
without LoRA. GPT-2's Conv1D keeps W as [in, out]: there the sum is transposed.

Every key must be accounted for: what is unknown, missing or there twice is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tasks.gsm8k_thoughts.checkpoint.files import CheckpointError, some
from tasks.gsm8k_thoughts.projection import Projection

_MODEL, _PROJECTION = "codi.base_model.model.", "prj."
_LORA = re.compile(r"(?P<layer>.+)\.lora_(?P<which>[AB])\.default\.weight")
_BASE = re.compile(r"(?P<layer>.+)\.base_layer\.(?P<part>weight|bias)")
# PEFT keeps the untrained original beside a module that was trained whole.
_SAVED = re.compile(r"(?P<layer>.+)\.modules_to_save\.default\.(?P<part>\w+)")
_ORIGINAL = re.compile(r"(?P<layer>.+)\.original_module\.(?P<part>\w+)")
# Masks and frequencies that older versions saved; they follow from the configuration.
_DERIVED = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


@dataclass
class _Sorted:
    """The tensors of the base model by what they are. keys: where each plain weight came from."""

    plain: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    down: dict[str, Tensor] = field(default_factory=dict)  # A, by layer
    up: dict[str, Tensor] = field(default_factory=dict)  # B, by layer
    wrapped: set[str] = field(default_factory=set)  # layers with a `base_layer`
    replaced: set[str] = field(default_factory=set)  # originals of modules that were trained whole

    def put(self, name: str, key: str, value: Tensor) -> None:
        """Note a plain weight; raises when it was there under another key."""
        if name in self.plain:
            raise CheckpointError(
                f"{name} is in the checkpoint twice, as {self.keys[name]} and {key}: which one "
                "was meant cannot be told."
            )
        self.plain[name], self.keys[name] = value, key


def vocabulary_size(tensors: Mapping[str, Tensor], model: PreTrainedModel) -> int | None:
    """Rows of the checkpoint's input or output embedding; None when it has neither.

    model: any instance of the base architecture, for the names.
    """
    rows = {_plain_name(key): value.shape[0] for key, value in tensors.items() if value.dim()}
    return next((rows[name] for name in _embeddings(model) if name in rows), None)


def _plain_name(key: str) -> str:
    name = key.removeprefix(_MODEL)
    for form in (_BASE, _SAVED):
        if match := form.fullmatch(name):
            return f"{match['layer']}.{match['part']}"
    return name


def _embeddings(model: PreTrainedModel) -> list[str]:
    """Names of the input and output embedding."""
    both = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    return [f"{name}.weight" for name, module in model.named_modules() if id(module) in both]


def split_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The base model's tensors and the projection's, without their prefixes.

    Raises `CheckpointError` for keys that belong to neither.
    """
    model = {k.removeprefix(_MODEL): v for k, v in tensors.items() if k.startswith(_MODEL)}
    projection = {
        k.removeprefix(_PROJECTION): v for k, v in tensors.items() if k.startswith(_PROJECTION)
    }
    others = [k for k in tensors if not k.startswith((_MODEL, _PROJECTION))]
    if others:
        raise CheckpointError(
            f"unexpected keys: {some(others)}. A CODI checkpoint has {_MODEL}... and "
            f"{_PROJECTION}... only."
        )
    return model, projection


def make_projection(tensors: Mapping[str, Tensor], d_model: int) -> Projection:
    """`prj` with its weights, in float32 and without gradients.

    tensors: 1.weight [width, d_model], 1.bias, 3.weight [d_model, width], 3.bias, ln.weight and
        ln.bias. Raises `CheckpointError` for missing or unknown ones and for wrong shapes.
    """
    first = tensors.get("1.weight")
    width = first.shape[0] if first is not None and first.dim() == 2 else d_model
    projection = Projection(d_model, width)
    _check_names(
        tensors,
        projection.state_dict(),
        _PROJECTION,
        "A CODI without its projection, or without the projection's layer norm (prj_no_ln), is "
        "not supported.",
    )
    projection.load_state_dict({k: v.float() for k, v in tensors.items()})
    return projection.eval().requires_grad_(False)


def _check_names(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], prefix: str, hint: str
) -> None:
    missing = [prefix + name for name in expected if name not in found]
    unknown = [prefix + name for name in found if name not in expected]
    faults = [
        f"{word} {some(n)}" for word, n in (("missing", missing), ("unexpected", unknown)) if n
    ]
    if faults:
        raise CheckpointError(f"keys of the checkpoint: {'; '.join(faults)}. {hint}")
    for name, value in found.items():
        if value.shape != expected[name].shape:
            raise CheckpointError(
                f"{prefix}{name} has the shape {tuple(value.shape)}, "
                f"{tuple(expected[name].shape)} was expected."
            )


@torch.no_grad()
def fill_model(
    model: PreTrainedModel, tensors: Mapping[str, Tensor], *, alpha: int | float, rank: int
) -> None:
    """Put the checkpoint's weights into `model`, LoRA merged into them.

    model: the base architecture with the new tokens, its weights of any value and type; merging is
        done in float32, or in the model's float64. tensors: named without `codi.base_model.model.`.
    alpha, rank: of the LoRA.

    Raises `CheckpointError` when names or shapes are not those of `model`, when a layer's LoRA is
    not whole or has another rank, and when tied embeddings differ.
    """
    found = _sort(tensors)
    layers = dict(model.named_modules())
    _check_lora(found, layers, rank)
    for layer in found.down:
        found.plain[f"{layer}.weight"] = _merged(found, layer, layers[layer], alpha / rank)
    expected = model.state_dict()
    _tie(found, model)
    derived = [n for n in found.plain if n.endswith(_DERIVED) and n not in expected]
    for name in derived:
        del found.plain[name]
    _check_names(
        found.plain,
        expected,
        _MODEL,
        "The base model (base=...) must be the one that CODI was trained from.",
    )
    model.load_state_dict(found.plain)


def _sort(tensors: Mapping[str, Tensor]) -> _Sorted:
    found = _Sorted()
    for key, value in tensors.items():
        if match := _LORA.fullmatch(key):
            (found.down if match["which"] == "A" else found.up)[match["layer"]] = value
        elif match := _ORIGINAL.fullmatch(key):
            found.replaced.add(f"{match['layer']}.{match['part']}")
        else:
            if match := _BASE.fullmatch(key):
                found.wrapped.add(match["layer"])
            found.put(_plain_name(key), key, value)
    if lost := sorted(found.replaced - set(found.plain)):
        raise CheckpointError(
            f"missing keys: {some(lost)} has its original_module but no modules_to_save.default."
        )
    return found


def _check_lora(found: _Sorted, layers: Mapping[str, nn.Module], rank: int) -> None:
    if not found.down and not found.up:
        raise CheckpointError(
            "the checkpoint has no LoRA (...lora_A.default.weight): already merged ones have "
            "lost the layout that is read here."
        )
    # LoRA is put on every layer of a name (c_attn, q_proj, ...): a gap is a lost tensor.
    kinds = {layer.rpartition(".")[2] for layer in found.down.keys() | found.up.keys()}
    wanted = {
        name
        for name, module in layers.items()
        if name.rpartition(".")[2] in kinds and isinstance(module, (nn.Linear, Conv1D))
    } | found.wrapped
    for part, which in ((found.down, "A"), (found.up, "B")):
        if missing := sorted(wanted - part.keys()):
            keys = [f"{_MODEL}{layer}.lora_{which}.default.weight" for layer in missing]
            raise CheckpointError(f"missing keys: {some(keys)}.")
    for layer in found.down.keys() | found.up.keys():
        if not isinstance(layers.get(layer), (nn.Linear, Conv1D)):
            raise CheckpointError(
                f"unexpected keys: LoRA on {_MODEL}{layer}, which is no linear layer of the base "
                "model."
            )
        if f"{layer}.weight" not in found.plain:
            raise CheckpointError(f"missing keys: {_MODEL}{layer}.base_layer.weight.")
    for layer, down in found.down.items():
        if down.dim() != 2 or down.shape[0] != rank:
            raise CheckpointError(
                f"the LoRA of {layer} has the shape {tuple(down.shape)}, rank {rank} was expected: "
                "give lora_rank= and lora_alpha= as they were in training."
            )


def _merged(found: _Sorted, layer: str, module: nn.Module, scale: float) -> Float[Tensor, "a b"]:
    weight, down, up = found.plain[f"{layer}.weight"], found.down[layer], found.up[layer]
    transposed = isinstance(module, Conv1D)
    expected = tuple(module.get_parameter("weight").shape)
    outer, inner = expected[::-1] if transposed else expected
    shapes = {
        "base_layer.weight": (weight, expected),
        "lora_A.default.weight": (down, (down.shape[0], inner)),
        "lora_B.default.weight": (up, (outer, down.shape[0])),
    }
    for name, (tensor, shape) in shapes.items():
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{_MODEL}{layer}.{name} has the shape {tuple(tensor.shape)}, {shape} was expected."
            )
    kind = torch.promote_types(torch.float32, module.get_parameter("weight").dtype)
    delta = scale * (up.to(kind) @ down.to(kind))
    # A new tensor: tensors of a .bin may share their memory.
    return weight.to(kind) + (delta.T if transposed else delta)


def _tie(found: _Sorted, model: PreTrainedModel) -> None:
    """Where input and output embedding are one tensor, a file may hold it once or twice."""
    names = _embeddings(model)
    state = model.state_dict()
    if len(names) != 2 or state[names[0]].data_ptr() != state[names[1]].data_ptr():
        return
    there = [name for name in names if name in found.plain]
    if len(there) == 2 and not torch.equal(found.plain[names[0]], found.plain[names[1]]):
        raise CheckpointError(
            f"{names[0]} and {names[1]} differ, but the base model ties them: the checkpoint is of "
            "another base model."
        )
    for name in set(names) - set(there) if there else ():
        found.plain[name] = found.plain[there[0]]
