"""The tables of a run: their columns, and a generated batch written as them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from torch import Tensor

from circuits.replay.generate import Generated
from circuits.replay.prompts import Batch, Prompts
from circuits.saes import SaeSet
from circuits.sites import Site

_NAME = pa.dictionary(pa.int16(), pa.string())
_WHICH = [("arm", _NAME), ("prompt", pa.int32()), ("trial", pa.int32())]
RESPONSES = pa.schema(
    [
        ("arm", _NAME),
        ("kind", _NAME),
        ("prompt", pa.int32()),
        ("trial", pa.int32()),
        ("response", pa.string()),
        ("tokens", pa.list_(pa.int32())),
        ("length", pa.int32()),
        ("stopped", pa.bool_()),
        ("divergence", pa.int32()),
        ("logprob", pa.float64()),
        ("unpatched_logprob", pa.float64()),
        ("parsed", pa.string()),
    ]
)
STEPS = pa.schema(
    [
        *_WHICH,
        ("step", pa.int32()),
        ("token", pa.int32()),
        ("logprob", pa.float32()),
        ("top_tokens", pa.list_(pa.int32())),
        ("top_logprobs", pa.list_(pa.float32())),
    ]
)
LATENTS = pa.schema(
    [
        *_WHICH,
        ("step", pa.int32()),
        ("site", _NAME),
        ("latent", pa.int32()),
        ("value", pa.float32()),
    ]
)
Parse = Callable[[str, str], Mapping[str, Any]]  # of a response and its prompt's text


def _named(name: str, count: int) -> pa.DictionaryArray:
    indices = pa.array(np.zeros(count, dtype=np.int16))
    return pa.DictionaryArray.from_arrays(indices, pa.array([name]))


def text_of(tokenizer: Any, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """A response as it stands behind its prompt: decoded alone it could lose a leading space."""
    settings = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    before = tokenizer.decode(list(prompt), **settings)
    whole = tokenizer.decode([*prompt, *ids], **settings)
    alone = tokenizer.decode(list(ids), **settings)
    return whole[len(before) :] if whole.startswith(before) else alone


def divergences(tokens: Sequence[Sequence[int]], base: Sequence[Sequence[int]]) -> list[int | None]:
    """Of each response the first step at which it is not `base`'s; None where they are the same."""
    found: list[int | None] = []
    for mine, other in zip(tokens, base, strict=True):
        differ = [i for i, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b]
        if differ:
            found.append(differ[0])
        else:  # one goes on where the other has ended: within a run that cannot be
            found.append(None if len(mine) == len(other) else min(len(mine), len(other)))
    return found


def tokens_of(made: Generated) -> list[list[int]]:
    """Token ids of each row, the stop token among them."""
    lengths = made.lengths.tolist()
    return [ids[:n] for ids, n in zip(made.tokens.tolist(), lengths, strict=True)]


def responses_table(
    arm: str,
    batch: Batch,
    prompts: Prompts,
    made: Generated,
    tokenizer: Any,
    base: Sequence[Sequence[int]] | None,
    unpatched: Float[np.ndarray, " row"] | None,
    parse: Parse | None,
) -> pa.Table:
    """One row a response.

    tokens, length: the stop token, if there is one, included; `response` is without it. divergence:
    the first step whose token is not that of the no-op arm. base: the no-op arm's tokens. logprob:
    of the whole response under the model as it ran; unpatched: under the unchanged model.
    """
    tokens, stopped = tokens_of(made), made.stopped.tolist()
    texts = [
        text_of(tokenizer, prompts.tokens[prompt], ids[:-1] if ended else ids)
        for prompt, ids, ended in zip(batch.prompt, tokens, stopped, strict=True)
    ]
    count = len(tokens)
    asked = [prompts.texts[i] for i in batch.prompt]
    parsed = [
        None if parse is None else json.dumps(dict(parse(text, prompt)), default=str)
        for text, prompt in zip(texts, asked, strict=True)
    ]
    columns = {
        "arm": _named(arm, count),
        "kind": pa.array([prompts.kinds[i] for i in batch.prompt]).dictionary_encode(),
        "prompt": batch.prompt,
        "trial": batch.trial,
        "response": texts,
        "tokens": tokens,
        "length": made.lengths.numpy().astype(np.int32),
        "stopped": stopped,
        "divergence": [None] * count if base is None else divergences(tokens, base),
        "logprob": made.logprobs.double().nansum(1).numpy(),
        "unpatched_logprob": [None] * count if unpatched is None else unpatched,
        "parsed": parsed,
    }
    return _table(columns, RESPONSES)


def steps_table(arm: str, batch: Batch, made: Generated) -> pa.Table:
    """One row a step: the token, its log-probability, and the most probable ones, best first."""
    row, step = made.inside.nonzero(as_tuple=True)
    top = made.top_tokens[row, step]
    offsets = np.arange(len(row) + 1, dtype=np.int32) * top.shape[1]
    best = made.top_logprobs[row, step].flatten().numpy()
    columns = {
        **_which(arm, batch, row.numpy(), step.numpy()),
        "token": made.tokens[row, step].numpy().astype(np.int32),
        "logprob": made.logprobs[row, step].numpy(),
        "top_tokens": pa.ListArray.from_arrays(offsets, top.flatten().numpy().astype(np.int32)),
        "top_logprobs": pa.ListArray.from_arrays(offsets, best),
    }
    return _table(columns, STEPS)


def latents_table(
    arm: str,
    batch: Batch,
    site: Site,
    saes: SaeSet,
    inside: Tensor,
    x: Float[Tensor, "row step width"],
) -> pa.Table:
    """The active latents of every step at a site, with their effective coefficients, in the order
    of row, step and latent. x: activations of the steps; inside: which of them there are."""
    row, step = (part.numpy() for part in inside.nonzero(as_tuple=True))
    sae = saes[site]
    device = sae.rows.device
    found = sae.encode_sparse(x[inside][None].to(device=device, dtype=sae.dtype))
    latents = found.latents
    value = latents.value * found.scale[0, latents.position, 0]
    at, latent = latents.position.cpu().numpy(), latents.latent.cpu().numpy()
    order = np.lexsort((latent, at))
    at = at[order]
    columns = {
        **_which(arm, batch, row[at], step[at]),
        "site": _named(str(site), len(at)),
        "latent": latent[order].astype(np.int32),
        "value": value.float().cpu().numpy()[order],
    }
    return _table(columns, LATENTS)


def _which(arm: str, batch: Batch, row: np.ndarray, step: np.ndarray) -> dict[str, Any]:
    return {
        "arm": _named(arm, len(row)),
        "prompt": np.asarray(batch.prompt, dtype=np.int32)[row],
        "trial": np.asarray(batch.trial, dtype=np.int32)[row],
        "step": step.astype(np.int32),
    }


def _table(columns: dict[str, Any], schema: pa.Schema) -> pa.Table:
    arrays = []
    for field in schema:
        column = columns[field.name]
        made = isinstance(column, pa.Array)
        arrays.append(column.cast(field.type) if made else pa.array(column, type=field.type))
    return pa.Table.from_arrays(arrays, schema=schema)
