"""A person's own hypotheses: a YAML file, a list of entries.

- site: resid_post.12
  latent: 5
  fires_on: {token: " the"}      # or before, class, source; of images label
  threshold: 5                   # optional: an enrichment; logits for raises and lowers
  note: articles                 # optional
- {site: resid_post.12, latent: 5, raises: {token: " cat"}}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from circuits.hypotheses.claims import (
    CLAIMS,
    KINDS,
    OUTPUTS,
    Claim,
    Condition,
    Hypothesis,
    HypothesisError,
    Kind,
)

_OTHERS = ("site", "latent", "threshold", "note")
_SHAPE = (
    'expected a list of entries such as {site: resid_post.12, latent: 5, fires_on: {token: " the"}}'
)


def read_hypotheses(path: str | Path) -> list[Hypothesis]:
    """Read a file of hypotheses.

    Raises `HypothesisError` that names the file, the entry, and what was expected there.
    """
    import yaml

    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HypothesisError(f"{file} cannot be read ({error}).") from error
    try:
        entries = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise HypothesisError(f"{file} is no YAML: {said}") from error
    if not isinstance(entries, list) or not entries:
        raise HypothesisError(f"{file}: {_SHAPE}.")
    found = []
    for number, entry in enumerate(entries, 1):
        try:
            found.append(_hypothesis(entry))
        except HypothesisError as error:
            raise HypothesisError(f"{file}, entry {number}: {error}") from error
    return found


def _hypothesis(entry: Any) -> Hypothesis:
    if not isinstance(entry, dict):
        raise HypothesisError(f"it is {_said(entry)}; {_SHAPE}.")
    unknown = [str(k) for k in entry if k not in (*_OTHERS, *CLAIMS)]
    if unknown:
        raise HypothesisError(
            f"unknown {', '.join(unknown)}; expected {', '.join((*_OTHERS[:2], *CLAIMS))}, "
            f"{' and '.join(_OTHERS[2:])}."
        )
    made: list[Claim] = [claim for claim in CLAIMS if claim in entry]
    if len(made) != 1:
        raise HypothesisError(
            f"{'both ' + ' and '.join(made) if made else 'no claim'}; expected one of "
            f"{', '.join(CLAIMS)}."
        )
    site, latent = entry.get("site"), entry.get("latent")
    if not isinstance(site, str) or not site:
        raise HypothesisError(f"site is {_said(site)}; expected a name such as resid_post.12.")
    if not isinstance(latent, int) or isinstance(latent, bool):
        raise HypothesisError(f"latent is {_said(latent)}; expected a whole number.")
    threshold, note = entry.get("threshold"), entry.get("note", "")
    if threshold is not None and (
        not isinstance(threshold, (int, float)) or isinstance(threshold, bool)
    ):
        raise HypothesisError(f"threshold is {_said(threshold)}; expected a number.")
    if not isinstance(note, str):
        raise HypothesisError(f"note is {_said(note)}; expected a text.")
    return Hypothesis(
        site,
        latent,
        made[0],
        _condition(made[0], entry[made[0]]),
        None if threshold is None else float(threshold),
        note,
        "person",
    )


def _condition(claim: Claim, about: Any) -> Condition:
    kinds: tuple[Kind, ...] = KINDS if claim == "fires_on" else OUTPUTS
    if not isinstance(about, dict) or len(about) != 1 or next(iter(about)) not in kinds:
        raise HypothesisError(
            f"{claim} is {_said(about)}; expected one of {', '.join(kinds)} with its value, such "
            f'as {claim}: {{token: " the"}}.'
        )
    [(kind, value)] = about.items()
    if kind == "label" and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # digits are labels too
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not isinstance(value, str) and not (whole and kind in ("token", "before")):
        more = " or a token's id" if kind in ("token", "before") else ""
        raise HypothesisError(
            f"{claim}: {kind} is {_said(value)}; expected a text{more} (in quotes where YAML would "
            "read it as something else)."
        )
    return Condition(kind, value)


def _said(value: Any) -> str:
    """A value as an error message has it."""
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
