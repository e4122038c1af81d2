"""The classifier: one hidden layer without biases, ReLU or GeGLU.

It is two maps, so that whatever stands between them can be changed: `preactivations`, from images
to what the nonlinearity is given, and `readout`, from there to logits.

relu: logits = W2 relu(z) with z = W1 x, as wide as the hidden layer.
geglu: logits = W2 (gelu(g) * v) with z = (g, v) side by side, gate first: twice as wide. An SAE
    reads both branches together, because a hidden unit is made of both (Shazeer 2020).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from circuits.errors import CircuitsError

KINDS = ("relu", "geglu")
_WEIGHTS, _CONFIG = "network.safetensors", "network.json"


class DigitsError(CircuitsError):
    """Options of the digits study that contradict each other, or files that are not its own."""


@dataclass(frozen=True)
class NetworkOptions:
    """What the classifier is and how it is trained, with Adam.

    kind: relu or geglu. hidden: units. epochs: times the training images are gone through.
    min_steps: small data sets are gone through more often, until there were so many steps; three
        epochs of MNIST are about 590, of 3,000 images 36.
    """

    kind: str = "relu"
    hidden: int = 128
    epochs: int = 3
    batch_size: int = 256
    learning_rate: float = 1e-3
    min_steps: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DigitsError(f"unknown network {self.kind!r}: expected {' or '.join(KINDS)}.")
        if min(self.hidden, self.epochs, self.batch_size) < 1 or self.learning_rate <= 0:
            raise DigitsError("hidden size, epochs, batch size and learning rate are positive.")

    def steps(self, n_images: int) -> int:
        """Steps that training on so many images takes."""
        return max(self.min_steps, self.epochs * math.ceil(n_images / self.batch_size))


class DigitClassifier(nn.Module):
    """784-128-10 by default; see the module for the two kinds."""

    def __init__(self, pixels: int, hidden: int = 128, kind: str = "relu", classes: int = 10):
        super().__init__()
        if kind not in KINDS:
            raise DigitsError(f"unknown network {kind!r}: expected {' or '.join(KINDS)}.")
        self.pixels, self.hidden, self.kind, self.classes = pixels, hidden, kind, classes
        self.inward = nn.Linear(pixels, self.width, bias=False)
        self.outward = nn.Linear(hidden, classes, bias=False)

    @property
    def width(self) -> int:
        """Of a vector of pre-activations."""
        return self.hidden * (2 if self.kind == "geglu" else 1)

    @property
    def name(self) -> str:
        """Such as digits-relu-128."""
        return f"digits-{self.kind}-{self.hidden}"

    def preactivations(
        self, images: Float[Tensor, "*image pixel"]
    ) -> Float[Tensor, "*image width"]:
        """What the nonlinearity is given; linear in the images."""
        return self.inward(images)

    def readout(self, preactivations: Float[Tensor, "*row width"]) -> Float[Tensor, "*row label"]:
        """Logits of vectors of pre-activations."""
        if self.kind == "relu":
            return self.outward(F.relu(preactivations))
        gate, value = preactivations.chunk(2, dim=-1)
        return self.outward(F.gelu(gate) * value)

    def forward(self, images: Float[Tensor, "*image pixel"]) -> Float[Tensor, "*image label"]:
        """Logits of images."""
        return self.readout(self.preactivations(images))

    def save(self, folder: Path, more: dict[str, Any] | None = None) -> None:
        """Write weights and configuration; more: what else is worth knowing, for people."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        save_file(weights, folder / _WEIGHTS)
        shape = {k: getattr(self, k) for k in ("pixels", "hidden", "kind", "classes")}
        text = json.dumps({**shape, "more": more or {}}, indent=1)
        (folder / _CONFIG).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> DigitClassifier:
        """Read back what `save` wrote, on the CPU; raises `DigitsError` for anything else."""
        try:
            words = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
            found = cls(words["pixels"], words["hidden"], words["kind"], words["classes"])
            found.load_state_dict(load_file(folder / _WEIGHTS))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise DigitsError(
                f"{folder} is not a whole digit classifier ({type(error).__name__}: {error}): "
                f"expected {_CONFIG} and {_WEIGHTS} as `save` writes them."
            ) from error
        return found.eval().requires_grad_(False)


def train_classifier(
    images: Float[Tensor, "image pixel"],
    labels: Int[Tensor, " image"],
    options: NetworkOptions,
    *,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> DigitClassifier:
    """A classifier trained on these images, returned on the CPU without gradients.

    The same seed gives the same weights on the same machine; torch's own generator is left as it
    was. The last batch of an epoch may be smaller.
    """
    generator = torch.Generator().manual_seed(options.seed)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(options.seed)
        network = DigitClassifier(images.shape[1], options.hidden, options.kind).to(device)
        x, y = images.to(device), labels.to(device)
        adam = torch.optim.Adam(network.parameters(), lr=options.learning_rate)
        steps = options.steps(len(x))
        bar = tqdm(total=steps, desc=f"training {network.name}", unit="step", disable=not progress)
        done, loss = 0, torch.zeros(())
        while done < steps:
            for part in torch.randperm(len(x), generator=generator).split(options.batch_size):
                if done == steps:
                    break
                loss = F.cross_entropy(network(x[part.to(device)]), y[part.to(device)])
                adam.zero_grad()
                loss.backward()
                adam.step()
                done += 1
                bar.update()
        bar.close()
    if not math.isfinite(float(loss.detach())):
        raise DigitsError(f"the loss became {float(loss.detach())}: lower the learning rate.")
    return network.cpu().eval().requires_grad_(False)


@torch.no_grad()
def accuracy(logits: Float[Tensor, "image label"], labels: Int[Tensor, " image"]) -> float:
    """The share of images whose largest logit is that of their label."""
    return float((logits.argmax(-1) == labels).double().mean())
