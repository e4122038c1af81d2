"""What hypotheses about text go by: classes of tokens, names of latents, the embedded bank."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from circuits.cli.hypotheses import parse_latents
from circuits.errors import CircuitsError
from circuits.features import FeatureBank
from circuits.hypotheses.classes import CLASSES, classes_of

SITE = "resid_post.3"


@pytest.mark.parametrize(
    ("token", "classes"),
    [
        (" 42", {"digits"}),
        (" The", {"capitalised", "word begin"}),
        ("HTTP", {"capitalised", "upper case", "word part"}),
        (" ==", {"punctuation", "operator"}),
        ("):", {"punctuation"}),
        (" (", {"punctuation", "bracket"}),
        ("'", {"punctuation", "quote"}),
        ("\n\n", {"white space", "newline"}),
        ("    ", {"white space"}),
        (" return", {"word begin", "python keyword"}),
        (" None", {"capitalised", "word begin", "python keyword"}),
        ("ing", {"word part"}),
        ("", set()),
        (" x1", set()),
    ],
)
def test_classes_of_tokens(token: str, classes: set[str]) -> None:
    assert classes_of(token) == classes <= set(CLASSES)


def test_latents_on_the_command_line() -> None:
    assert parse_latents(["resid_post.3:5,17", "blocks.3.hook_resid_post:5,2"]) == {
        SITE: [5, 17, 2]
    }
    for wrong in ("resid_post.3", "resid_post.3:", "resid_post.3:a", "nowhere.3:1"):
        with pytest.raises(CircuitsError, match="expected"):
            parse_latents([wrong])


def test_the_embedded_bank_says_what_it_has_seen() -> None:
    bank = FeatureBank.load()
    assert bank.seen is not None
    assert int(bank.seen.tokens["count"].sum()) == bank.record["positions"]
    assert set(bank.examples["document"]) <= set(bank.seen.documents["document"])
    counts: Any = bank.seen.tokens.set_index("token")["count"]
    for row in bank.latents.sample(200, random_state=0).to_dict("records"):
        assert (counts.loc[list(row["at"])].to_numpy() >= np.asarray(row["at_count"])).all()
