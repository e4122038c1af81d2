"""What can be read from a thought, beside what it does: legible is not the same as used.

- *logit lens*: the stream at a thought through final norm and unembedding; how much probability
  lies on numbers at all, and on each value of the problem.
- *probe*: a logistic regression from the stream to a value, fitted on some problems and tested on
  others; its accuracy is given with that of always saying the commonest value.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.metrics import summarise_mean
from circuits.models.hooked import HookedModel
from circuits.models.unembed import final_norm, unembedding
from circuits.sites import Site
from tasks.gsm8k_thoughts.chains import Chains
from tasks.gsm8k_thoughts.model import thoughts_of
from tasks.gsm8k_thoughts.pairs import chain_vocabulary, prompts_of

_AT_ONCE = 256


def value_names(n_steps: int) -> list[str]:
    """v1, v2, ... and the answer."""
    return [*(f"v{i}" for i in range(1, n_steps)), "answer"]


@torch.no_grad()
def thought_states(
    model: HookedModel, chains: Chains
) -> tuple[list[str], dict[int, Float[Tensor, "problem place d_model"]]]:
    """Names of places (bot, t1, ..., eot) and, per layer, the stream behind it there; layer -1 is
    what enters layer 0, the thought itself."""
    tokens = prompts_of(model, chains)
    layout = thoughts_of(model).tokens.lay_out(tokens[0, : 6 * chains.n_steps + 2].tolist())
    places = [layout.slots[0] - 1, *layout.slots, layout.slots[-1] + 1]
    names = ["bot", *(f"t{i + 1}" for i in range(len(layout.slots))), "eot"]
    sites = [Site(0, "resid_pre"), *(Site(i, "resid_post") for i in range(model.n_layers))]
    parts = [model.activations(part, sites) for part in tokens.split(_AT_ONCE)]
    found = {
        layer: torch.cat([p[site][:, places] for p in parts])
        for layer, site in enumerate(sites, start=-1)
    }
    return names, found


@torch.no_grad()
def logit_lens(model: HookedModel, chains: Chains) -> pd.DataFrame:
    """One row a place, layer and reading: mean probability with its interval.

    reading: "numbers", the mass on all numbers, or a value's name.
    """
    vocabulary = chain_vocabulary(model)
    names, states = thought_states(model, chains)
    norm, matrix = final_norm(model), unembedding(model)
    values = torch.from_numpy(vocabulary.number(chains.values))
    rows: list[dict[str, Any]] = []
    for layer, x in states.items():
        probability = (norm(x) @ matrix).float().softmax(-1).cpu()
        numbers = probability[..., vocabulary.number(0) :].sum(-1)
        readings = {"numbers": numbers}
        for i, name in enumerate(value_names(chains.n_steps)):
            index = values[:, i, None, None].expand(-1, len(names), 1)
            readings[name] = probability.gather(2, index)[..., 0]
        for reading, found in readings.items():
            summary = summarise_mean(found.numpy())
            for p, place in enumerate(names):
                rows.append(
                    {
                        "place": place,
                        "layer": layer,
                        "reading": reading,
                        "probability": float(summary.value[p]),
                        "low": float(summary.low[p]),
                        "high": float(summary.high[p]),
                    }
                )
    return pd.DataFrame(rows)


def probes(model: HookedModel, chains: Chains, *, seed: int = 0) -> pd.DataFrame:
    """One row a place, layer and value: accuracy of a linear probe on the second half of the
    problems, fitted on the first, and `majority`, the commonest value's share there."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names, states = thought_states(model, chains)
    half = len(chains) // 2
    rows: list[dict[str, Any]] = []
    for layer, x in states.items():
        for p, place in enumerate(names):
            features = x[:, p].float().cpu().numpy()
            for i, name in enumerate(value_names(chains.n_steps)):
                wanted = chains.values[:, i]
                probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=300))
                with warnings.catch_warnings():  # few problems for so many values: as asked for
                    warnings.filterwarnings("ignore", "The number of unique classes")
                    probe.fit(features[:half], wanted[:half])
                right = (probe.predict(features[half:]) == wanted[half:]).astype(float)
                common = np.bincount(wanted[:half]).argmax()
                summary = summarise_mean(right, seed=seed)
                rows.append(
                    {
                        "place": place,
                        "layer": layer,
                        "value": name,
                        "accuracy": float(summary.value),
                        "low": float(summary.low),
                        "high": float(summary.high),
                        "majority": float((wanted[half:] == common).mean()),
                    }
                )
    return pd.DataFrame(rows)
