"""Is a latent active on a class of examples? Counts, ratios, and a p value that counts groups.

1. The enrichment is (rate in the class) / (rate outside), with an interval from groups drawn with
   replacement. Where nothing is active outside, half an example is counted there.
2. Where every example is its own group (images), the p value is Fisher's exact one.
3. Examples of one group (positions of a document) hang together in ways nobody knows: a group is
   one observation. Group g has the score U_g = both_g - active_g members_g / n_g, the number active
   in the class less what independence *within the group* expects, so that groups which have more of
   both (code and prose) do not count as a relation. Whatever hangs together in a group, the mean of
   U_g is 0 without a relation, and p is that of a one-sided t test over the groups that can tell
   (some active, some members, not all), never smaller than 2^-groups, which is all that as many
   signs can say. Measured without a relation, 30 documents, nominal 5%: 0.2% to 4.2% for classes of
   5% to 30% of the positions; 7.3% in the worst case found, a class of 60% whose members are whole
   words of which a document has few (counting positions: 23% to 34%).
   `within` is the enrichment inside groups (Mantel and Haenszel 1959).
4. A class that groups belong to as a whole (the source of a document) is compared between groups:
   Mann and Whitney's test on their rates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import hypergeom, mannwhitneyu, t

from circuits.metrics import bootstrap_weights

RESAMPLES = 2000
_LEAST = 0.5  # examples counted where there are none


@dataclass(frozen=True)
class Enrichment:
    """What `enrichment` finds.

    examples, active, members, both: numbers of examples. groups: that can tell anything.
    value, low, high: the enrichment with its 95% interval. within: inside groups; NaN where every
    example is its own group, or groups belong to the class as a whole. recall: share of the active
    ones that are in the class; precision: share of the class that is active. p: one-sided, against
    independence; NaN where no group can tell.
    """

    examples: int
    active: int
    members: int
    both: int
    groups: int
    value: float
    low: float
    high: float
    within: float
    p: float

    @property
    def recall(self) -> float:
        """Of the examples on which the latent is active, the share in the class."""
        return self.both / self.active if self.active else float("nan")

    @property
    def precision(self) -> float:
        """Of the examples in the class, the share on which the latent is active."""
        return self.both / self.members if self.members else float("nan")

    @property
    def rate_outside(self) -> float:
        """Of the examples outside the class, the share on which the latent is active."""
        outside = self.examples - self.members
        return (self.active - self.both) / outside if outside else float("nan")


def enrichment(
    active: Bool[np.ndarray, " example"],
    members: Bool[np.ndarray, " example"],
    groups: Int[np.ndarray, " example"],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Enrichment:
    """Compare the class `members` with all other examples.

    groups: codes, 0 to the number of groups - 1.
    """
    n_groups = int(groups.max()) + 1
    n, a, m, k = (
        np.bincount(groups[which], minlength=n_groups).astype(float)
        for which in (np.ones_like(active), active, members, active & members)
    )
    alone = bool((n == 1).all())
    within, telling = float("nan"), n_groups
    if alone:
        drawn = _cells(n.sum(), a.sum(), m.sum(), k.sum(), resamples, seed)
        p = float(hypergeom.sf(k.sum() - 1, n.sum(), m.sum(), a.sum()))
    else:
        drawn = bootstrap_weights(n_groups, resamples, seed) @ np.stack([n, a, m, k], 1) * n_groups
        if ((m == 0) | (m == n)).all():
            p, telling = _between(a / np.maximum(n, 1), m > 0)
        else:
            p, telling, within = _within(n, a, m, k)
    ratios = _ratio(*drawn.T)
    some = ratios[~np.isnan(ratios)]
    low, high = np.quantile(some, [0.025, 0.975]) if len(some) else (float("nan"),) * 2
    totals = [int(x.sum()) for x in (n, a, m, k)]
    value = float(_ratio(*(np.array([float(x)]) for x in totals))[0])
    return Enrichment(
        examples=totals[0],
        active=totals[1],
        members=totals[2],
        both=totals[3],
        groups=telling,
        value=value,
        low=float(low),
        high=float(high),
        within=within,
        p=p,
    )


def _ratio(
    n: Float[np.ndarray, " some"],
    a: Float[np.ndarray, " some"],
    m: Float[np.ndarray, " some"],
    k: Float[np.ndarray, " some"],
) -> Float[np.ndarray, " some"]:
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (k / m) / (np.maximum(a - k, _LEAST) / (n - m))
    return np.where((m > 0) & (m < n) & (a > 0), found, np.nan)


def _cells(
    n: float, a: float, m: float, k: float, resamples: int, seed: int
) -> Float[np.ndarray, "resample 4"]:
    """Examples drawn with replacement are four numbers drawn from a multinomial."""
    shares = np.array([k, a - k, m - k, n - a - m + k]) / n
    drawn = np.random.default_rng(seed).multinomial(int(n), shares, size=resamples).astype(float)
    both, only_active, only_member = drawn[:, 0], drawn[:, 1], drawn[:, 2]
    return np.stack([drawn.sum(1), both + only_active, both + only_member, both], 1)


def _within(
    n: Float[np.ndarray, " group"],
    a: Float[np.ndarray, " group"],
    m: Float[np.ndarray, " group"],
    k: Float[np.ndarray, " group"],
) -> tuple[float, int, float]:
    """(p, groups that can tell, enrichment inside groups)."""
    tells = (a > 0) & (a < n) & (m > 0) & (m < n)
    n, a, m, k = (x[tells] for x in (n, a, m, k))
    if not len(n):
        return float("nan"), 0, float("nan")
    inside = (k * (n - m) / n).sum() / max(((a - k) * m / n).sum(), _LEAST * (m / n).mean())
    return mean_above(k - a * m / n, 0.0), len(n), float(inside)


def _between(
    rates: Float[np.ndarray, " group"], members: Bool[np.ndarray, " group"]
) -> tuple[float, int]:
    """(p, groups) of whole groups in and outside of the class."""
    if members.all() or not members.any():
        return float("nan"), 0
    test = mannwhitneyu(rates[members], rates[~members], alternative="greater")
    return float(test.pvalue), int(min(members.sum(), (~members).sum()))


def mean_above(values: Float[np.ndarray, " group"], bound: float) -> float:
    """One-sided p of the mean over groups being above `bound`: Student's t, never smaller than
    2^-groups. NaN for one group."""
    count = len(values)
    if count < 2:
        return float("nan")
    mean, spread = float(values.mean()) - bound, float(values.std(ddof=1))
    scale = float(np.abs(values).max()) + abs(bound)
    floor = 2.0**-count
    if spread <= 1e-9 * scale:  # all alike but for rounding
        return floor if mean > 1e-9 * scale else 1.0
    return max(floor, float(t.sf(mean / (spread / count**0.5), count - 1)))


def mean_interval(values: Float[np.ndarray, " group"]) -> tuple[float, float]:
    """95% interval of the mean over groups, Student's t; NaN for one group."""
    count = len(values)
    if count < 2:
        return float("nan"), float("nan")
    reach = float(t.ppf(0.975, count - 1) * values.std(ddof=1) / count**0.5)
    return float(values.mean()) - reach, float(values.mean()) + reach
