"""The prose that is fetched, as it is fetched."""

from __future__ import annotations

from circuits.corpora import open_source


def test_the_documentation_of_django_is_prose() -> None:
    source = open_source("django-docs")
    documents = list(source.documents())
    assert len(documents) == 640
    assert sum(len(d.text) for d in documents) > 5_000_000
    assert [d.name for d in documents[:3]] == [d.name for d in list(source.documents())[:3]]
    assert all(d.name.startswith("docs/") for d in documents)
    assert source.describe()["licence"] == "BSD-3-Clause"
