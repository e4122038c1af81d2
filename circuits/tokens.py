"""Tokens as text that can be read."""

from __future__ import annotations

_SPACES = str.maketrans({" ": "\u2423", "\n": "\u21b5", "\t": "\u21e5", "\r": "\u240d"})


def visible(token: str) -> str:
    """A token with its white space made visible."""
    return token.translate(_SPACES) or "\u2205"
