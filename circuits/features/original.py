"""The original study's file: `layer_{l}_interpretations.json`, one object a latent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from circuits.features.bank import BankError, FeatureBank


def write_interpretations(bank: FeatureBank, folder: Path) -> list[Path]:
    """Write one file a layer; raises `BankError` for two sites of one layer, which it cannot name.

    Keys: feature_id, active, num_activations, top_activation, mean_activation, common_tokens (text
    and count), top_examples (text around it, position in its context, activation).
    """
    layers = [site.layer for site in bank.sites]
    if len(set(layers)) < len(layers):
        raise BankError("--format original names files by layer: give one site a layer.")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for site in bank.sites:
        table: Any = bank.latents
        shown: Any = bank.examples
        shown = shown[shown["site"] == str(site)].sort_values(["latent", "rank"])
        examples = {latent: part.to_dict("records") for latent, part in shown.groupby("latent")}
        rows = [
            _latent(row, examples.get(row["latent"], []), bank.vocabulary)
            for row in table[table["site"] == str(site)].to_dict("records")
        ]
        path = folder / f"layer_{site.layer}_interpretations.json"
        path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        written.append(path)
    return written


def _latent(
    row: dict[str, Any], examples: list[dict[str, Any]], vocabulary: dict[int, str]
) -> dict[str, Any]:
    common = zip(row["at"], row["at_count"], strict=True)
    return {
        "feature_id": int(row["latent"]),
        "active": not bool(row["dead"]),
        "num_activations": int(row["active"]),
        "top_activation": float(row["max"]),
        "mean_activation": float(row["mean"]),
        "common_tokens": [[vocabulary[int(t)], int(n)] for t, n in common],
        "top_examples": [
            {
                "text": "".join(vocabulary[int(t)] for t in one["tokens"] if t >= 0),
                "position": int(one["position"]),
                "activation": float(one["value"]),
            }
            for one in examples
        ],
    }
