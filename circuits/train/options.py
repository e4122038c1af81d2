"""What an SAE is trained as."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from circuits.errors import CircuitsError

ARCHITECTURES = ("batchtopk", "jumprelu", "topk", "standard")
_LEARNING_RATE = 2e-3


class TrainError(CircuitsError):
    """Options that contradict each other, or a training that cannot go on."""


@dataclass(frozen=True)
class SaeOptions:
    """How an SAE is trained.

    architecture: `batchtopk` (saved as JumpReLU), `topk`, `jumprelu` or `standard`.
    width: latents. sparsity: latents active at a token for batchtopk and topk; the coefficient of
        the sparsity loss for jumprelu (L0) and standard (L1), whose L0 it only steers.
    l0_range: in which L0 is wanted; "best" looks at it beside the reconstruction.
    epochs: times the training rows are gone through. batch_size: rows.
    learning_rate: at its peak; warmed up over the first twentieth of the steps, then a cosine down
        to a hundredth. autocast: products in bfloat16, which is faster where the machine has them.
    threshold, bandwidth: of jumprelu alone: where thresholds begin, and within which distance of
        its threshold a pre-activation has a gradient through its gate. gate_to_encoder: whether
        that gradient reaches the encoder as well as the threshold. decoder_norm: of every decoder
        row in the beginning; pre-activations are about as large, so a threshold must suit it.
        They are SAELens' own by default.
    """

    architecture: str = "batchtopk"
    width: int = 4096
    sparsity: float | int = 64
    l0_range: tuple[float, float] = (20.0, 80.0)
    epochs: float | int = 1
    batch_size: int = 2048
    learning_rate: float = _LEARNING_RATE
    seed: int = 0
    autocast: bool = False
    threshold: float | int = 0.01
    bandwidth: float | int = 0.05
    gate_to_encoder: bool = False
    decoder_norm: float | int = 0.1

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise TrainError(
                f"unknown architecture {self.architecture!r}: expected one of "
                f"{', '.join(ARCHITECTURES)}."
            )
        if min(self.width, self.batch_size) < 1 or min(self.epochs, self.learning_rate) <= 0:
            raise TrainError("width, batch size, epochs and learning rate must be positive.")
        if self.sparsity <= 0:
            raise TrainError(f"sparsity is {self.sparsity}: expected a positive number.")
        if self.threshold < 0 or min(self.bandwidth, self.decoder_norm) <= 0:
            raise TrainError(
                "the threshold cannot be negative; bandwidth and decoder norm must be positive."
            )
        if self.architecture in ("batchtopk", "topk") and self.sparsity > self.width:
            raise TrainError(
                f"{self.sparsity:g} active latents of {self.width}: a token cannot have more than "
                "there are."
            )
        if self.architecture == "topk" and self.sparsity != int(self.sparsity):
            raise TrainError(f"topk needs a whole number of latents, not {self.sparsity}.")
        if not 0 < self.l0_range[0] < self.l0_range[1]:
            raise TrainError(f"the range of L0 {self.l0_range}: expected 0 < low < high.")

    def sae(self, width_in: int, metadata: dict[str, Any], steps: int, device: str) -> Any:
        """A SAELens training SAE, freshly initialised."""
        import torch
        from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
        from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
        from sae_lens.saes.sae import SAEMetadata
        from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
        from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

        shared: dict[str, Any] = {
            "d_in": width_in,
            "d_sae": self.width,
            "device": device,
            "decoder_init_norm": self.decoder_norm,
            "normalize_activations": "none",  # rows are scaled by a constant, folded in at the end
            "metadata": SAEMetadata(**metadata),
        }
        torch.manual_seed(self.seed)
        if self.architecture == "batchtopk":
            # The threshold is a moving average that starts at 0 and must have arrived by the end.
            rate = min(0.5, max(0.01, 20 / steps))
            return BatchTopKTrainingSAE(
                BatchTopKTrainingSAEConfig(**shared, k=self.sparsity, topk_threshold_lr=rate)
            )
        if self.architecture == "topk":
            return TopKTrainingSAE(TopKTrainingSAEConfig(**shared, k=int(self.sparsity)))
        warm_up = steps // 5  # latents first learn to reconstruct
        if self.architecture == "jumprelu":
            return JumpReLUTrainingSAE(
                JumpReLUTrainingSAEConfig(
                    **shared,
                    l0_coefficient=self.sparsity,
                    l0_warm_up_steps=warm_up,
                    jumprelu_init_threshold=self.threshold,
                    jumprelu_bandwidth=self.bandwidth,
                    jumprelu_ste_to_input=self.gate_to_encoder,
                )
            )
        return StandardTrainingSAE(
            StandardTrainingSAEConfig(
                **shared, l1_coefficient=self.sparsity, l1_warm_up_steps=warm_up
            )
        )
