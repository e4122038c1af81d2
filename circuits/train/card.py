"""The card of a trained SAE: what it was trained on and how well it does on held-out documents."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from circuits.models.hooked import HookedModel
from circuits.runs import sha256_of, versions
from circuits.saes import SaeSet
from circuits.saes.quality import Moments, Quality
from circuits.sites import Site
from circuits.train.options import SaeOptions
from circuits.train.store import Store
from circuits.train.trainer import load_trained, measure_card_rows

CARD_JSON, CARD_TEXT = "card.json", "card.txt"
# On held-out documents; L0 has its range among the options.
LEAST = {"explained_variance": 0.82, "ce_recovered": 0.95}
MOST = {"dead": 0.05}
_CONTEXTS_AT_ONCE = 8

_MEANING = {
    "l0": "active latents a token",
    "explained_variance": "share of the variance that is reconstructed, outliers left out",
    "explained_variance_all": "the same with outliers, which decide it",
    "outliers": "share of positions whose norm is over five times the median",
    "ce_recovered": "next-token cross-entropy recovered, against zero ablation",
    "dead": "share of latents never active on the held-out rows",
    "shrinkage": "length of reconstructions about the mean; 1 is neither shrunk nor stretched",
}


def write_cards(
    model: HookedModel,
    store: Store,
    saes: SaeSet,
    options: SaeOptions,
    *,
    ce_tokens: int = 20_000,
    command: Sequence[str] = (),
    progress: bool = True,
) -> dict[Site, dict[str, Any]]:
    """Measure every SAE of a folder of trained ones and write `card.json` and `card.txt` beside it.

    L0, explained variance, shrinkage and the dead share are over the held-out rows of the store
    that had no say in which checkpoint was the best (over all of them where few are left);
    explained variance and shrinkage leave out outliers (`measure_card_rows`). The cross-entropy is
    over the first `ce_tokens` of their tokens, all SAEs on the same ones.
    """
    losses, counted = _cross_entropies(model, store, saes, ce_tokens, progress)
    cards = {}
    for site in tqdm(list(saes), desc="cards", unit="SAE", disable=not progress):
        folder = Path(saes.sources[site].name)
        typical, outliers = measure_card_rows(load_trained(folder, site), store)
        measured = {"ce_recovered": losses[site], **measures(typical, outliers)}
        cards[site] = card = {
            "site": str(site),
            "model": store.manifest.key["model"],
            "model_sha256": store.manifest.key["model_sha256"],
            "sha256": sha256_of(folder / "sae_weights.safetensors"),
            "corpus": store.manifest.key["corpus"],
            "tokens": store.manifest.tokens,
            "rows": {s: store.manifest.rows(s) for s in ("train", "heldout")},
            "measured_rows": typical.rows + outliers.rows,
            "ce_tokens": counted,
            "options": {
                k: list(v) if isinstance(v, tuple) else v for k, v in vars(options).items()
            },
            "command": list(command),
            "heldout": measured,
            "targets": targets(options),
            "passed": judge(measured, options),
            "versions": versions(),
        }
        (folder / CARD_JSON).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
        (folder / CARD_TEXT).write_text(card_text(card), encoding="utf-8")
    return cards


def _cross_entropies(
    model: HookedModel, store: Store, saes: SaeSet, tokens: int, progress: bool
) -> tuple[dict[Site, float], int]:
    """Cross-entropy recovered of each SAE, and on how many tokens."""
    quality, left = Quality(model, saes), tokens
    with tqdm(total=tokens, desc="cross-entropy", unit="token", disable=not progress) as bar:
        for shard, lengths in store.contexts("heldout"):
            for start in range(0, len(shard), _CONTEXTS_AT_ONCE):
                part = lengths[start : start + _CONTEXTS_AT_ONCE]
                if left <= 0:
                    break
                quality.add(shard[start : start + _CONTEXTS_AT_ONCE, : int(part.max())], part)
                left -= int(part.sum())
                bar.update(int(part.sum()))
    table = quality.table()
    rows = table.to_dict("records")
    return {Site.parse(row["site"]): float(row["ce_recovered"]) for row in rows}, tokens - left


def measures(typical: Moments, outliers: Moments) -> dict[str, float]:
    """What a card says of held-out rows."""
    both = typical.with_(outliers)
    return {
        "l0": both.l0,
        "explained_variance": typical.explained_variance,
        "explained_variance_all": both.explained_variance,
        "outliers": outliers.rows / both.rows,
        "dead": both.dead,
        "shrinkage": typical.shrinkage,
    }


def targets(options: SaeOptions) -> dict[str, list[float | None]]:
    """Per measure the lowest and highest value that is wanted, None where there is no such end."""
    wanted: dict[str, list[float | None]] = {"l0": list(options.l0_range)}
    wanted |= {name: [least, None] for name, least in LEAST.items()}
    return wanted | {name: [None, most] for name, most in MOST.items()}


def judge(measured: dict[str, float], options: SaeOptions) -> dict[str, bool]:
    """Per measure that has a target, whether it is met."""
    return {
        name: bool(
            (low is None or measured[name] >= low) and (high is None or measured[name] <= high)
        )
        for name, (low, high) in targets(options).items()
    }


def _range(low: float | None, high: float | None) -> str:
    if low is None:
        return f"at most {high:g}"
    return f"at least {low:g}" if high is None else f"{low:g} to {high:g}"


def card_text(card: dict[str, Any]) -> str:
    """A card to read."""
    options, corpus = card["options"], card["corpus"]
    lines = [
        f"SAE at {card['site']} of {card['model']}",
        "",
        f"{options['architecture']}, {options['width']} latents, sparsity {options['sparsity']:g}",
        f"trained on {card['rows']['train']:,} token positions, "
        f"held out {card['rows']['heldout']:,}",
        "corpus: "
        + ", ".join(
            f"{s['name']} (weight {s['weight']:g}, {card['tokens'].get(s['name'], 0):,} tokens)"
            for s in corpus["sources"]
        ),
        "command: " + " ".join(card["command"]),
        "",
        f"on {card['measured_rows']:,} held-out positions ({card['ce_tokens']:,} for the "
        "cross-entropy), first positions left out:",
    ]
    for name, value in card["heldout"].items():
        target = card["targets"].get(name)
        verdict = "" if target is None else "  " + ("pass" if card["passed"][name] else "FAIL")
        wanted = "" if target is None else f"  (wanted {_range(*target)})"
        lines.append(f"  {name:<20}{value:>9.3f}{wanted}{verdict}  {_MEANING[name]}")
    return "\n".join(lines) + "\n"
