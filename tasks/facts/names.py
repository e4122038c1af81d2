"""Names that are recognised when an answer is read, right or wrong."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from tasks.facts.facts import (
    ARITHMETIC,
    CONTINENTS,
    SAME_CITY,
    SAME_ELEMENT,
    cities,
    countries,
    country_names,
    currencies,
    elements,
)

_CITY = 50_000  # people


@cache
def names_of(kind: str) -> tuple[str, ...]:
    """What an answer to a kind of fact can be; nothing for numbers."""
    return () if kind in ARITHMETIC else tuple(dict.fromkeys(_NAMES[kind]()))


def _capitals() -> Iterable[str]:
    """Capitals and larger cities, and countries, which are wrong here."""
    yield from (row["capital"].strip() for row in countries().values() if row["capital"])
    yield from (name for names in SAME_CITY.values() for name in names)
    yield from (city["name"] for city in cities() if city["population"] >= _CITY)
    yield from _countries()


def _countries() -> Iterable[str]:
    return (name for code in countries() for name in country_names(code))


def _continents() -> Iterable[str]:
    yield from (name for names in CONTINENTS.values() for name in names)
    yield from ("Antarctica", "Eurasia")


def _currencies() -> Iterable[str]:
    yield from (name for fact in currencies() for name in fact.accepted)
    # Units of countries that are not asked about, or of former times.
    yield from ("bolivar", "lev", "kuna", "mark", "lira", "bitcoin")


def _symbols() -> Iterable[str]:
    return (symbol for _, symbol, _ in elements())


def _elements() -> Iterable[str]:
    yield from (name for _, _, name in elements())
    yield from (name for names in SAME_ELEMENT.values() for name in names)


_NAMES = {
    "capital": _capitals,
    "country": _countries,
    "city": _countries,
    "continent": _continents,
    "currency": _currencies,
    "symbol": _symbols,
    "element": _elements,
}
