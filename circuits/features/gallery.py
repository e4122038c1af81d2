"""Cards of all latents that read the vectors of a model, and a page of all of them.

The page is one file that opens without a network: a table that sorts by activation, purity and
effect, and the card of the latent that is chosen. Cards are compressed in it.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from circuits.features.bank import FeatureBank
from circuits.features.effects import Effects
from circuits.features.vectors import LabelledVectors, VectorError
from circuits.sites import Site

_HERE = Path(__file__).parent
_SCALE = 8  # pixels of a picture a pixel of the image, in files of the original's names


@dataclass(frozen=True, eq=False)
class Gallery:
    """Everything a card shows. bank, effects: of `collect_vectors`. explored: what the bank's
    examples are from; where its inputs are images [example, height, width], they are shown.
    patterns: input patterns of the latents of `effects`, in their order. verdicts: lines about a
    latent that its card shows too, such as those of tested hypotheses."""

    bank: FeatureBank
    effects: Effects
    explored: LabelledVectors
    patterns: Float[Tensor, "latent height width"] | None = None
    verdicts: Mapping[int, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.bank.sites) != 1:
            raise VectorError(f"a gallery is of one SAE, the bank has {len(self.bank.sites)}.")
        if self.images is not None and self.images.dim() != 3:
            raise VectorError(
                f"inputs of the shape {tuple(self.images.shape)}: images are [example, height, "
                "width]. Leave inputs out where they are none."
            )
        if (self.patterns is None) != (self.images is None):
            raise VectorError("give images and patterns, or neither.")
        if self.patterns is not None and len(self.patterns) != len(self.effects.latents):
            raise VectorError(
                f"{len(self.patterns)} patterns for {len(self.effects.latents)} latents."
            )

    @property
    def site(self) -> Site:
        """Of the SAE."""
        return self.bank.sites[0]

    @property
    def record(self) -> dict[str, Any]:
        """Of the bank."""
        return self.bank.record

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of labels and outputs."""
        return self.explored.classes

    @property
    def images(self) -> Tensor | None:
        """What the vectors are of, [example, height, width]."""
        return self.explored.inputs

    @cached_property
    def label_counts(self) -> list[int]:
        """Examples of each label."""
        return np.bincount(self.explored.labels.cpu(), minlength=len(self.classes)).tolist()

    @cached_property
    def _places(self) -> dict[int, int]:
        return {latent: i for i, latent in enumerate(self.effects.latents)}

    def place(self, latent: int) -> int:
        """Where a latent stands in effects and patterns; raises `VectorError` for others."""
        if latent not in self._places:
            raise VectorError(f"latent {latent} was not analysed.")
        return self._places[latent]

    @cached_property
    def _reach(self) -> tuple[float, float]:
        assert self.images is not None
        return float(self.images.min()), float(self.images.max())

    def pixels(self, example: int) -> np.ndarray:
        """An image in 256 steps from the smallest to the largest value of all images."""
        assert self.images is not None
        low, high = self._reach
        x = (self.images[example].cpu().float().numpy() - low) / ((high - low) or 1.0)
        return np.round(x * 255).astype(np.uint8)

    @cached_property
    def _examples(self) -> dict[int, list[dict[str, Any]]]:
        table: Any = self.bank.examples
        return {
            int(latent): part.sort_values("rank").to_dict("records")
            for latent, part in table.groupby("latent")
        }

    def examples(self, latent: int) -> list[dict[str, Any]]:
        """The strongest, by rank; see `FeatureBank.examples`."""
        return self._examples.get(latent, [])

    def card(self, latent: int) -> Any:
        """One plotly figure: examples, pattern, labels, dose-response."""
        from circuits.plots.vector_latent import vector_latent_figure

        return vector_latent_figure(self, latent)

    def alive(self) -> list[int]:
        """Analysed latents that are active in some example, the most active first."""
        table: Any = self.bank.latents
        table = table[~table["dead"]].sort_values("rate", ascending=False, kind="stable")
        return [int(j) for j in table["latent"] if int(j) in self._places]

    def page(self, latents: Sequence[int] | None = None) -> str:
        """A page of all cards (by default of all latents that are ever active)."""
        from plotly.offline import get_plotlyjs

        from circuits.plots.vector_latent import vector_latent_json

        chosen = self.alive() if latents is None else list(latents)
        table: Any = self.bank.latents
        rows = table.set_index("latent")
        entries = []
        for latent in chosen:
            row = rows.loc[latent]
            entries.append(
                {
                    "latent": latent,
                    "rate": float(row["rate"]),
                    "max": float(row["max"]),
                    "label": self.classes[int(row["at"][0])] if len(row["at"]) else "",
                    "purity": float(row["purity"]),
                    "boosted": self.classes[int(row["boosted"])],
                    "effect": float(row["effect"]),
                    "low": float(row["effect_low"]),
                    "high": float(row["effect_high"]),
                    "card": _packed(vector_latent_json(self, latent)),
                }
            )
        name = self.record["saes"][0]["name"]
        told = (
            f"{len(chosen)} of {len(self.bank.latents)} latents of {name}, read on "
            f"{self.record['positions']:,} examples. Effect: change of the output that one "
            "standard deviation of the latent raises most, less the mean of all outputs, on "
            f"{self.record['held_out']:,} held-out examples, with its 95% interval. Click a "
            "heading to sort, a row for its card."
        )
        parts = {
            "title": html.escape(f"Latents of {self.record['model']}"),
            "facts": html.escape(told),
            # "</" would end the script it stands in.
            "data": json.dumps(entries).replace("</", "<\\/"),
            "plotly": get_plotlyjs(),
            "script": (_HERE / "gallery.js").read_text(encoding="utf-8"),
        }
        page = (_HERE / "gallery.html").read_text(encoding="utf-8")
        for key, value in parts.items():
            page = page.replace(f"{{{{{key}}}}}", value)
        return page

    def save(self, path: str | Path, latents: Sequence[int] | None = None) -> Path:
        """Write the page."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(self.page(latents), encoding="utf-8")
        return target

    def write_original(self, folder: str | Path, latents: Sequence[int]) -> list[Path]:
        """The original study's files: `feature_{k}_gallery.png`, the strongest examples side by
        side; `feature_{k}_pattern.png`, red below zero and blue above; `feature_{k}_pattern.npy`,
        its numbers [height, width], and `feature_{k}_gallery.npy`, the examples' numbers."""
        from PIL import Image

        if self.images is None or self.patterns is None:
            raise VectorError("there are no images to write pictures of.")
        where = Path(folder)
        where.mkdir(parents=True, exist_ok=True)
        written = []
        for latent in latents:
            pattern = self.patterns[self.place(latent)].float().cpu().numpy()
            rows = [int(one["context"]) for one in self.examples(latent)]
            images = self.images[rows].float().cpu().numpy()
            shown = (
                np.hstack([self.pixels(i) for i in rows]) if rows else np.zeros((1, 1), np.uint8)
            )
            for name, picture in (("gallery", 255 - shown), ("pattern", _coloured(pattern))):
                path = where / f"feature_{latent}_{name}.png"
                large = picture.repeat(_SCALE, 0).repeat(_SCALE, 1)
                Image.fromarray(large).save(path)
                written.append(path)
            for name, numbers in (("gallery", images), ("pattern", pattern)):
                path = where / f"feature_{latent}_{name}.npy"
                np.save(path, numbers, allow_pickle=False)
                written.append(path)
        return written


def _packed(figure: dict[str, Any]) -> str:
    """A figure as compressed JSON."""
    return base64.b64encode(gzip.compress(json.dumps(figure).encode(), 6, mtime=0)).decode()


def _coloured(pattern: np.ndarray) -> np.ndarray:
    """[height, width, 3]: white at 0, red below, blue above, by share of the largest."""
    share = pattern / (np.abs(pattern).max() or 1.0)
    ends = np.where(share[..., None] > 0, [5, 48, 97], [103, 0, 31])
    found = 255 + (ends - 255) * np.abs(share)[..., None]
    return np.round(found).astype(np.uint8)
