"""A person's file of hypotheses, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from circuits.hypotheses import Condition, Hypothesis, HypothesisError, read_hypotheses

GOOD = """
- site: resid_post.12
  latent: 5
  fires_on: {token: " the"}
  threshold: 4
  note: articles
- {site: pixels, latent: 0, fires_on: {label: 7}}
- {site: resid_post.12, latent: 5, raises: {class: digits}, threshold: 0.5}
- {site: resid_post.12, latent: 5, lowers: {token: 17}}
"""


def test_entries_are_read_as_they_are_meant(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(GOOD)
    one = ("resid_post.12", 5)
    assert read_hypotheses(path) == [
        Hypothesis(*one, "fires_on", Condition("token", " the"), 4.0, "articles", "person"),
        Hypothesis("pixels", 0, "fires_on", Condition("label", "7"), None, "", "person"),
        Hypothesis(*one, "raises", Condition("class", "digits"), 0.5, "", "person"),
        Hypothesis(*one, "lowers", Condition("token", 17), None, "", "person"),
    ]


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ("5", "it is 5; expected a list of entries"),
        ("{site: a, latent: 1}", "no claim; expected one of fires_on, raises, lowers"),
        (
            "{site: a, latent: 1, fires_on: {token: x}, raises: {token: x}}",
            "both fires_on and raises",
        ),
        ("{site: a, latent: 1, fires_on: {token: x}, thershold: 3}", "unknown thershold; expected"),
        ("{latent: 1, fires_on: {token: x}}", "site is missing; expected a name such as"),
        ("{site: a, latent: one, fires_on: {token: x}}", "latent is 'one'; expected a whole"),
        ("{site: a, latent: true, fires_on: {token: x}}", "latent is True; expected a whole"),
        ("{site: a, latent: -1, fires_on: {token: x}}", "latent -1 at a: they count from 0"),
        ("{site: a, latent: 1, fires_on: x}", "fires_on is 'x'; expected one of label, token"),
        ("{site: a, latent: 1, fires_on: {word: x}}", "expected one of label, token, before"),
        ("{site: a, latent: 1, raises: {before: x}}", "expected one of label, token, class with"),
        ("{site: a, latent: 1, fires_on: {token: no}}", "token is False; expected a text or a"),
        ("{site: a, latent: 1, fires_on: {class: 3}}", r"class is 3; expected a text \(in quotes"),
        ("{site: a, latent: 1, fires_on: {token: ''}}", "token: it is empty"),
        ("{site: a, latent: 1, fires_on: {token: x}, threshold: big}", "threshold is 'big'"),
        ("{site: a, latent: 1, fires_on: {token: x}, threshold: .nan}", "threshold nan: expected"),
        ("{site: a, latent: 1, raises: {token: x}, threshold: -1}", "expected 0 or more"),
        ("{site: a, latent: 1, fires_on: {token: x}, note: [1]}", r"note is \[1\]; expected a"),
    ],
)
def test_mistakes_name_the_entry_and_what_is_expected(
    tmp_path: Path, entry: str, match: str
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(f"- {{site: a, latent: 0, fires_on: {{token: x}}}}\n- {entry}\n")
    with pytest.raises(HypothesisError, match=rf"own\.yaml, entry 2: .*{match}"):
        read_hypotheses(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    with pytest.raises(HypothesisError, match="cannot be read"):
        read_hypotheses(path)
    for text in ("", "a: 1", "[]"):
        path.write_text(text)
        with pytest.raises(HypothesisError, match="expected a list of entries"):
            read_hypotheses(path)
    for text in ("- {a: ", "- !!python/object/apply:os.getcwd []"):
        path.write_text(text)
        with pytest.raises(HypothesisError, match="is no YAML"):
            read_hypotheses(path)
