"""A neutral family: openings of stories in two kinds, bright and gloomy.

For models whose replies to the slot machine are too weak: any model continues a story, and which
words a latent adds to it or removes can be seen. The kinds differ in two words of as many tokens.
"""

from __future__ import annotations

import itertools
import random

KINDS = ("bright", "gloomy")
_NAMES = ("Anna", "Tom", "Sarah", "David", "Emma", "Jack", "Mary", "Paul")
_PLACES = ("the park", "the market", "the old house", "the river", "the station", "the library")
# (bright, gloomy)
_WEATHER = (("sunny", "rainy"), ("warm", "cold"), ("bright", "dark"), ("clear", "grey"))
_MOOD = (("happy", "sad"), ("glad", "lost"), ("calm", "tired"), ("proud", "afraid"))
_OPENING = "It was a {weather} morning, and {name} felt {mood}. On the way to {place},"


def openings(seed: int) -> list[tuple[str, str]]:
    """(bright, gloomy) versions of every opening, in an order drawn by the seed."""
    every = list(itertools.product(_NAMES, _PLACES, _WEATHER, _MOOD))
    random.Random(f"openings {seed}").shuffle(every)
    return [
        (
            _OPENING.format(name=name, place=place, weather=weather[0], mood=mood[0]),
            _OPENING.format(name=name, place=place, weather=weather[1], mood=mood[1]),
        )
        for name, place, weather, mood in every
    ]
