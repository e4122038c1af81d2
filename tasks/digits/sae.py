"""The JumpReLU SAE: trained on standardised pre-activations, used on raw ones.

Training sees z = (x - mean) / std with the mean and standard deviation of the training images'
pre-activations x, so that every one of them counts alike. In what is handed out the standardisation
is part of the weights, and no effect can forget to undo it:

    W_enc / std,  b_enc - (mean / std) W_enc,  W_dec * std,  mean + std * b_dec

Latents, thresholds and which of them are active are the same; decoder rows, of norm 1 for z, have
the norm that they have for x.

The loss is the mean squared error of a component of z plus lambda times L0. Training is SAELens'
(`circuits.train.rows`), with the settings that correspond to the soft L0 of this study,
sum sigmoid((pre - threshold) / T): thresholds begin at .5; the gate's surrogate gradient, a
rectangle there, has at the threshold the height 1 / (4 T) of the sigmoid's slope, so its width is
4 T; it reaches the encoder as the soft L0's does. Decoder rows begin with norm 1, because with
SAELens' .1 pre-activations are a tenth of a standard deviation and a threshold of .5 leaves seven
latents of eight dead for good. They are free in training and normalised at the end, which changes
nothing else, so that there is no projected gradient to forget.

The learning rate is a peak that a cosine follows. The original's settings (1e-3, batches of 512,
five epochs) leave SAEs half trained: at ten active latents of MNIST's ReLU network they explain 94%
of the variance, 1,200 batches of 256 at 6e-3 97%, and twice as many steps no more than that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from circuits.saes.sae import Sae
from circuits.sites import Site
from circuits.train import SaeOptions
from circuits.train.rows import train_rows
from tasks.digits.network import DigitsError

# What an `Sae` is called by. The network has one hidden layer and no hook of this name.
PLACE = Site(0, "mlp_out")


@dataclass(frozen=True)
class SaeTraining:
    """How an SAE of given lambda is trained.

    latents: of the dictionary. epochs: times the training images are gone through.
    min_steps: small data sets are gone through more often, until there were so many steps.
    threshold: where thresholds begin, in standard deviations. temperature: T of the soft L0.
    """

    latents: int = 512
    epochs: int = 5
    batch_size: int = 256
    learning_rate: float = 6e-3
    threshold: float = 0.5
    temperature: float = 0.1
    min_steps: int = 1200
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.latents, self.epochs, self.batch_size, self.min_steps) < 1:
            raise DigitsError("latents, epochs, batch size and steps of the SAE are positive.")
        if min(self.learning_rate, self.temperature) <= 0 or self.threshold < 0:
            raise DigitsError(
                "learning rate and temperature are positive, the threshold is not negative."
            )

    def options(self, lam: float, n_rows: int, width: int) -> SaeOptions:
        """SAELens' settings. Its loss sums the squared errors of the components, so that lambda
        is multiplied by their number."""
        size = min(self.batch_size, n_rows)
        an_epoch = n_rows // size
        steps = max(self.epochs * an_epoch, self.min_steps)
        return SaeOptions(
            architecture="jumprelu",
            width=self.latents,
            sparsity=lam * width,
            epochs=steps / an_epoch,
            batch_size=size,
            learning_rate=self.learning_rate,
            seed=self.seed,
            threshold=self.threshold,
            bandwidth=4 * self.temperature,
            gate_to_encoder=True,
            decoder_norm=1.0,
        )


@dataclass(frozen=True, eq=False)
class Standardiser:
    """Mean and standard deviation of every component; that of one that is constant counts as 1."""

    mean: Float[Tensor, " width"]
    std: Float[Tensor, " width"]

    @classmethod
    def of(cls, x: Float[Tensor, "row width"]) -> Standardiser:
        """Computed in float64."""
        wide = x.double()
        std = wide.std(0, correction=0)
        return cls(wide.mean(0), torch.where(std > 0, std, torch.ones_like(std)))

    def __call__(self, x: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
        """z, in the type of x."""
        return ((x.double() - self.mean) / self.std).to(x.dtype)


@dataclass(frozen=True, eq=False)
class StandardSae:
    """Weights of a JumpReLU SAE of standardised vectors: f = pre where pre = z W_enc + b_enc is
    above the threshold, else 0; z' = f W_dec + b_dec."""

    W_enc: Float[Tensor, "width latent"]
    b_enc: Float[Tensor, " latent"]
    W_dec: Float[Tensor, "latent width"]
    b_dec: Float[Tensor, " width"]
    threshold: Float[Tensor, " latent"]

    @classmethod
    def of(cls, sae: Sae) -> StandardSae:
        """Those of a JumpReLU SAE, with a decoder bias that is taken from the input folded in."""
        inner = sae._sae
        if inner.cfg.architecture() != "jumprelu" or sae.normalises:
            raise DigitsError("a JumpReLU SAE without normalisation of its input is expected.")
        b_enc = inner.b_enc
        if inner.cfg.apply_b_dec_to_input:
            b_enc = (b_enc.double() - inner.b_dec.double() @ inner.W_enc.double()).to(b_enc.dtype)
        return cls(inner.W_enc, b_enc, inner.W_dec, inner.b_dec, inner.threshold)

    def preactivations(self, z: Float[Tensor, "row width"]) -> Float[Tensor, "row latent"]:
        """What is compared with the thresholds."""
        return z @ self.W_enc + self.b_enc

    def raw(self, scale: Standardiser, shift: float = 0.0, dtype: str = "float32") -> Sae:
        """The SAE of raw vectors, with all thresholds moved by `shift`.

        Computed in float64 and rounded to `dtype`. Thresholds do not go below 0, where JumpReLU is
        ReLU.
        """
        from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
        from sae_lens.saes.sae import SAEMetadata

        W_enc, W_dec = self.W_enc.double(), self.W_dec.double()
        folded = {
            "W_enc": W_enc / scale.std[:, None],
            "b_enc": self.b_enc.double() - (scale.mean / scale.std) @ W_enc,
            "W_dec": W_dec * scale.std,
            "b_dec": scale.mean + scale.std * self.b_dec.double(),
            "threshold": (self.threshold.double() + shift).clamp(min=0),
        }
        config = JumpReLUSAEConfig(
            d_in=W_enc.shape[0],
            d_sae=W_enc.shape[1],
            dtype=dtype,
            device="cpu",
            apply_b_dec_to_input=False,
            metadata=SAEMetadata(model_name="digits", hook_name="preactivations"),
        )
        sae = JumpReLUSAE(config)
        sae.load_state_dict({k: v.to(sae.W_enc.dtype) for k, v in folded.items()})
        return Sae(sae, PLACE)

    def save(self, path: Path) -> None:
        """Write the weights; whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        work = path.with_name(f".{path.name}.partial")
        save_file({k: v.contiguous() for k, v in vars(self).items()}, work)
        work.replace(path)

    @classmethod
    def load(cls, path: Path) -> StandardSae | None:
        """Read back what `save` wrote; None where it is not there or cannot be read."""
        try:
            return cls(**load_file(path))
        except (OSError, TypeError, SafetensorError):
            return None


def train_standard(
    z: Float[Tensor, "row width"], lam: float, training: SaeTraining, device: str = "cpu"
) -> StandardSae:
    """An SAE of standardised vectors trained with this lambda; decoder rows have norm 1."""
    if not (math.isfinite(lam) and lam > 0):
        raise DigitsError(f"lambda is {lam}: expected a positive number.")
    options = training.options(lam, *z.shape)
    return StandardSae.of(train_rows(z, options, PLACE, device=device))


def save_sae(sae: Sae, folder: Path) -> None:
    """Write an SAE in SAELens' format."""
    sae._sae.save_model(str(folder))


def load_sae(folder: Path | str) -> Sae:
    """An SAE of raw pre-activations as `save_sae` wrote it, in float32 on the CPU."""
    from circuits.train.trainer import load_trained

    return load_trained(Path(folder), PLACE)
