"""The feature bank's cards of a circuit's latents, small enough to go into a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from circuits.features.bank import FeatureBank
from circuits.features.describe import describe
from circuits.graph.circuit import Circuit, GraphError
from circuits.tokens import visible

_EXAMPLES, _BEFORE, _AFTER, _TOKENS = 6, 24, 8, 8  # most of each that a card shows


class _Words:
    """Texts by the number under which they stand in `texts`, each once."""

    def __init__(self, vocabulary: Mapping[int, str]) -> None:
        self._vocabulary, self._places = vocabulary, {}
        self.texts: list[str] = []

    def __call__(self, token: Any) -> int:
        token = int(token)
        if token not in self._places:
            self._places[token] = len(self.texts)
            self.texts.append(visible(self._vocabulary[token]))
        return self._places[token]


def cards_of(circuit: Circuit, bank: FeatureBank) -> dict[str, Any]:
    """`words` (texts, white space visible), `positions` (of the corpus) and `cards` by
    "SITE/LATENT", of the latents that the bank has.

    A card: `text` (one line), `active, rate, mean, max`, `at` and `before` ([word, share of its
    activations]), `raised` and `lowered` ([word, effect on its logit per unit]), `examples`
    ([value, place of the peak, words, activations in percent of the latent's largest]).
    Raises `GraphError` where the bank's SAEs are not the circuit's.
    """
    _check_same(circuit, bank)
    wanted = {
        (str(one.node.site), one.node.latent) for one in circuit.nodes if one.node.role == "latent"
    }
    rows = _rows(bank.latents, wanted)
    examples = _rows(bank.examples, wanted)
    words = _Words(bank.vocabulary)
    cards = {}
    for key, (row, *_) in rows.items():
        shown = sorted(examples.get(key, []), key=lambda one: one["rank"])[:_EXAMPLES]
        cards[f"{key[0]}/{key[1]}"] = {
            "text": describe(row, bank.vocabulary, bank.record["positions"]),
            **{name: _short(row[name]) for name in ("active", "rate", "mean", "max")},
            "at": _shares(row, "at", words),
            "before": _shares(row, "before", words),
            **{
                name: [
                    [words(token), _short(by)]
                    for token, by in zip(row[name], row[f"{name}_by"], strict=True)
                ][:_TOKENS]
                for name in ("raised", "lowered")
            },
            "examples": [_example(one, row, bank.record["window"][0], words) for one in shown],
        }
    return {"words": words.texts, "positions": bank.record["positions"], "cards": cards}


def _check_same(circuit: Circuit, bank: FeatureBank) -> None:
    ours, theirs = _digests(circuit.record), _digests(bank.record)
    sites = {str(one.node.site) for one in circuit.nodes}
    other = [site for site in sites & ours.keys() & theirs.keys() if ours[site] != theirs[site]]
    if other:
        raise GraphError(
            f"the bank was collected with another SAE at {', '.join(sorted(other))} than the "
            "circuit was found with: its cards would be of other latents. Collect one with "
            "`circuits features --saes NAME`, with the circuit's SAEs."
        )


def _digests(record: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the SAEs by site, as far as a record has them."""
    saes = record.get("saes")
    if not isinstance(saes, list | tuple):
        return {}
    known = [one for one in saes if isinstance(one, Mapping) and one.get("sha256")]
    return {str(one.get("site")): one["sha256"] for one in known}


def _rows(table: Any, wanted: set[tuple[str, int]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Rows of the wanted latents; one pass over the table, however many there are."""
    keys = list(zip(table["site"], table["latent"], strict=True))
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in table[[key in wanted for key in keys]].to_dict("records"):
        found.setdefault((row["site"], row["latent"]), []).append(row)
    return found


def _short(value: Any) -> float | int:
    """A number with as many digits as anyone reads."""
    return int(value) if float(value).is_integer() else float(f"{float(value):.4g}")


def _shares(row: Mapping[str, Any], name: str, words: _Words) -> list[list[Any]]:
    pairs = zip(row[name], row[f"{name}_count"], strict=True)
    active = max(int(row["active"]), 1)
    return [[words(token), _short(int(n) / active)] for token, n in pairs][:_TOKENS]


def _example(
    example: Mapping[str, Any], row: Mapping[str, Any], peak: int, words: _Words
) -> list[Any]:
    start = max(0, peak - _BEFORE)
    stop = peak + _AFTER + 1
    tokens = np.asarray(example["tokens"])[start:stop]
    shares = np.asarray(example["activations"])[start:stop] / float(row["max"])
    there = tokens >= 0  # beyond the ends of the context there is none
    return [
        _short(example["value"]),
        int(there[: peak - start].sum()),
        [words(token) for token in tokens[there]],
        [round(100 * min(1.0, float(share))) for share in shares[there]],
    ]
