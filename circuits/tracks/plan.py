"""How tracks are made: every weight and threshold, and what it means."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from circuits.errors import CircuitsError

Which = Literal["kept", "all"]


class TrackError(CircuitsError):
    """Tracks that cannot be made from what was given."""


@dataclass(frozen=True)
class Places:
    """At which tokens of an answer tracks are followed.

    last: so many tokens at the end of the prompt. completion: the first so many tokens of the
    answer; None for all of them. Tokens are read as inputs: the last token of the prompt is where
    the answer's first one is predicted.
    """

    last: int = 1
    completion: int | None = None

    def __post_init__(self) -> None:
        few = self.completion is not None and self.completion < 0
        if self.last < 0 or few or (self.last == 0 and self.completion == 0):
            raise TrackError("no positions: expected some of last:K, completion, completion:K.")

    @classmethod
    def parse(cls, text: str) -> Places:
        """Read "last:1,completion:3"; raises `TrackError` for anything else."""
        found: dict[str, int | None] = {"last": 0, "completion": 0}
        for part in text.split(","):
            name, colon, number = part.strip().partition(":")
            whole = number.isdigit() and int(number) > 0
            if (name == "last" and whole) or (name == "completion" and (whole or not colon)):
                found[name] = int(number) if colon else None
            else:
                raise TrackError(
                    f"positions {text!r}: expected some of last:K, completion, completion:K, such "
                    "as last:1,completion:3."
                )
        return cls(found["last"] or 0, found["completion"])

    def __str__(self) -> str:
        parts = [f"last:{self.last}"] if self.last else []
        if self.completion != 0:
            parts.append("completion" + ("" if self.completion is None else f":{self.completion}"))
        return ",".join(parts)


@dataclass(frozen=True)
class TrackPlan:
    """Every option of `track`.

    positions: at which tokens (`Places`).
    k: latents at a site and position, the strongest by the norm of what they write, effective
        coefficient times norm of the decoder row: coefficients of different SAEs, and of different
        latents of one, have different units, writes have those of the stream.
    densest: latents active at more than this share of all the answers' tokens are left out.

    The score of a link from an earlier to a later latent is
        (decoder * cosine + activation * closeness) / (decoder + activation) - distance * positions
    decoder: weight of the cosine of the decoder rows, -1 to 1.
    activation: weight of the closeness, 0 to 1: the smaller of both latents' shares of their site's
        writes over the larger one.
    distance: cost of every position between them; only with a reach.
    reach: how many positions later a track may go on (attention moves content); 0: none.
    least: smallest score of a link, and of a gap of one site that is bridged.
    branch: smallest score of a split or a merge, besides the one-to-one links.

    permutations: how often layers are shuffled for the null. level: largest false discovery rate.
    rare: groups of answers in which both latents of a pair must occur for it to be tested.
    within: a label of the answers; layers are then exchanged among answers with the same one, and
        what all of them have in common is not specific.
    links: tracks go along links that are "kept" by the null, or along "all".

    checked: most pairs of latents that are ablated. occurrences: of each, in different answers as
        far as there are. lost: share of the later latent's activation that must be lost.
    """

    positions: Places = field(default_factory=Places)
    k: int = 8
    densest: float = 0.5
    decoder: float = 1.0
    activation: float = 0.25
    distance: float = 0.1
    reach: int = 0
    least: float = 0.4
    branch: float = 0.5
    permutations: int = 499
    level: float = 0.05
    rare: int = 5
    within: str | None = None
    links: Which = "kept"
    checked: int = 40
    occurrences: int = 16
    lost: float = 0.5
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = [
            text
            for good, text in (
                (self.k >= 1, "k counts from 1"),
                (0 < self.densest <= 1, "densest is a share above 0"),
                (self.decoder >= 0 and self.activation >= 0, "weights are not negative"),
                (self.decoder + self.activation > 0, "one of the weights must not be 0"),
                (self.distance >= 0 and self.reach >= 0, "distance and reach are not negative"),
                (0 < self.least <= 1, "the least score lies above 0 and is at most 1"),
                (self.least <= self.branch, "branch must not be below least"),
                (self.permutations >= 19, "19 permutations at least, or no p is below 0.05"),
                (0 < self.level < 1, "the level must lie between 0 and 1"),
                (self.rare >= 1, "a pair must occur in a group at least"),
                (self.links in ("kept", "all"), "links are kept or all"),
                (self.checked >= 0 and self.occurrences >= 1, "checks count from 0 and 1"),
                (0 <= self.lost < 1, "the share lost lies from 0 to below 1"),
                (self.batch_size >= 1, "a batch has a row at least"),
            )
            if not good
        ]
        if wrong:
            raise TrackError(f"this plan cannot be followed: {'; '.join(wrong)}.")

    def score(self, cosine: Any, closeness: Any) -> Any:
        """At one position; numbers or arrays."""
        whole = self.decoder + self.activation
        return (self.decoder * cosine + self.activation * closeness) / whole

    @property
    def least_cosine(self) -> float:
        """No link has a smaller one, however close its activations; -1 where any will do."""
        if self.decoder == 0:
            return -1.0
        whole = self.decoder + self.activation
        return (self.least * whole - self.activation) / self.decoder

    def told(self) -> dict[str, Any]:
        """For a record."""
        return {**asdict(self), "positions": str(self.positions)}
