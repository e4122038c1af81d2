"""Noise and sampling against independent implementations."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats
from transformers.generation.logits_process import TopPLogitsWarper

from circuits.replay import Key, Noise, ReplayError, Sampling, keys_of, prompt_digest
from circuits.replay.noise import gumbel_of
from circuits.replay.sampling import choose, nucleus

KEYS = [Key("a", 0), Key("a", 1), Key("b", 0)]
WORD = (1 << 64) - 1


def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox4x64-10 as the paper gives it, with whole numbers of Python."""
    c, k = list(counter), list(key)
    for _ in range(10):
        one, two = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(two >> 64) ^ c[1] ^ k[0], two & WORD, (one >> 64) ^ c[3] ^ k[1], one & WORD]
        k = [(k[0] + 0x9E3779B97F4A7C15) & WORD, (k[1] + 0xBB67AE8584CAA73B) & WORD]
    return c


def test_bits_are_those_of_the_paper() -> None:
    digest = hashlib.sha256(b"7/a/1").digest()
    key = [int.from_bytes(digest[i : i + 8], "little") for i in (0, 8)]
    # The generator raises its counter before it uses it.
    expected = [n for block in (1, 2, 3) for n in philox([block, 5, 0, 0], key)]
    found = Noise(7, KEYS).raw(1, 5, 12)
    assert [int(n) for n in found] == expected
    uniform = ((found[3] >> np.uint64(12)).astype(float) + 0.5) / 2**52
    assert float(Noise(7, KEYS).gumbel(1, 5, 12)[3]) == pytest.approx(-np.log(-np.log(uniform)))


def test_noise_depends_on_seed_prompt_trial_and_step_alone() -> None:
    noise = Noise(0, KEYS)
    first = noise.gumbel(0, 3, 200)
    assert torch.equal(Noise(0, KEYS[::-1]).gumbel(2, 3, 200), first)
    assert torch.equal(noise.gumbel(0, 3, 300)[:200], first)
    which = torch.tensor([5, 199, 17])
    assert torch.equal(noise.gumbel(0, 3, 200, which), first[which])
    others = [noise.gumbel(1, 3, 200), noise.gumbel(2, 3, 200), noise.gumbel(0, 4, 200)]
    others.append(Noise(1, KEYS).gumbel(0, 3, 200))
    for other in others:
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.3  # 4 standard errors


def test_noise_is_gumbel() -> None:
    drawn = torch.cat([Noise(0, KEYS).gumbel(0, step, 5000) for step in range(8)]).numpy()
    assert stats.kstest(drawn, "gumbel_r").pvalue > 1e-3  # seeded: it holds or it does not
    assert np.isfinite(drawn).all()


def test_noise_of_the_first_and_the_last_bits_is_finite() -> None:
    found = gumbel_of(np.array([0, WORD - 4096, WORD], dtype=np.uint64)).numpy()
    assert np.isfinite(found).all()
    # -log(-log(2^-53)), and -log(-log(1 - 2^-53)) with -log(1 - u) = u + u^2 / 2.
    expected = [-np.log(53 * np.log(2)), 53 * np.log(2) - np.log(3), 53 * np.log(2)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_noise_is_that_of_the_middle_of_its_interval() -> None:
    """Against the 52 bits as a number, converted and scaled."""
    bits = np.random.default_rng(0).integers(0, 2**64, 5000, dtype=np.uint64)
    kept = bits.copy()
    uniform = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    wanted = -torch.from_numpy(uniform).log()
    assert torch.equal(gumbel_of(bits), -wanted.log())
    assert (bits == kept).all()


def test_keys_are_of_token_ids() -> None:
    tokens = torch.tensor([[1, 2, 3], [1, 2, 3], [1, 2, 4]])
    keys = keys_of(tokens, [0, 1, 0])
    assert keys[0].prompt == keys[1].prompt == prompt_digest([1, 2, 3]) != keys[2].prompt
    assert [k.trial for k in keys] == [0, 1, 0]


def test_the_nucleus_is_that_of_transformers() -> None:
    draw = torch.Generator().manual_seed(0)
    for width, spread in ((30, 3.0), (2000, 0.3), (2000, 6.0), (6000, 0.1)):
        logits = spread * torch.randn(9, width, generator=draw).double()
        for top_p in (0.1, 0.5, 0.9, 0.999):
            theirs = TopPLogitsWarper(top_p)(torch.zeros(1, 1), logits) > -float("inf")  # pyright: ignore
            assert torch.equal(nucleus(logits, top_p), theirs)
    ties = torch.tensor([[1.0, 1.0, 0.0, 1.0]]).double()
    assert nucleus(ties, 0.4).tolist() == [[True, True, False, True]]


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_tokens_are_drawn_with_their_probabilities(top_p: float) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, 0.5]])
    sampling, n = Sampling(0.7, top_p), 4000
    noise = Noise(0, [Key("p", trial) for trial in range(n)])
    found = choose(logits.expand(n, -1), sampling, noise, torch.arange(n), 0)
    weights = torch.softmax(logits[0].double() / 0.7, 0)
    if top_p < 1:
        weights = weights * (weights >= sorted(weights, reverse=True)[1])  # two of them are 82%
    counts = torch.bincount(found, minlength=5)
    inside = weights > 0
    assert counts[~inside].sum() == 0
    expected = (weights / weights.sum() * n)[inside].numpy()
    assert stats.chisquare(counts[inside].numpy(), expected).pvalue > 1e-3


def test_greedy_and_options_that_make_no_sense() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    rows = torch.tensor([0])
    assert choose(logits, Sampling(0.0), Noise(0, KEYS), rows, 0).tolist() == [1]
    for wrong in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(ReplayError):
            Sampling(**wrong)
