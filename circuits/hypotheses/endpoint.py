"""A chat endpoint in OpenAI's format: one question, one answer.

The key comes from the environment (CIRCUITS_LLM_KEY, else OPENAI_API_KEY) each time it is needed.
It is in no object, record or message, and is sent to no other host: redirects are refused.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from circuits.hypotheses.claims import HypothesisError

KEYS = ("CIRCUITS_LLM_KEY", "OPENAI_API_KEY")
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
_LONGEST = 300  # characters of an answer that a message quotes


class EndpointError(HypothesisError):
    """An endpoint that cannot be reached, refuses, or answers something else."""


@dataclass(frozen=True)
class Endpoint:
    """Where descriptions are asked for.

    url: the base, such as http://localhost:8000/v1. model: as the endpoint calls it. timeout:
        seconds for one answer. tries: attempts, with pauses of `pause`, 2 pause, ... seconds.
    """

    url: str
    model: str
    timeout: float = 60.0
    tries: int = 3
    pause: float = 1.0

    def __post_init__(self) -> None:
        try:
            parts = urllib.parse.urlsplit(self.url)
            host = parts.hostname
        except ValueError as error:
            raise EndpointError(f"{self.url!r} is no address ({error}).") from error
        if parts.username or parts.password or parts.query or parts.fragment:
            raise EndpointError(
                "an endpoint's address is kept in the record and must have no password, query or "
                f"fragment in it: put the key into {KEYS[0]}."
            )
        if parts.scheme not in ("http", "https") or not host:
            raise EndpointError(
                f"{self.url!r} is no endpoint: expected an address such as "
                "http://localhost:8000/v1."
            )
        if not self.model:
            raise EndpointError("no model is named: give --describe-model.")
        if self.timeout <= 0 or self.tries < 1 or self.pause < 0:
            raise EndpointError("expected a time-out above 0 and one try or more.")

    @property
    def address(self) -> str:
        """Where questions are sent."""
        base = self.url.rstrip("/")
        ending = "/chat/completions"
        return base if base.endswith(ending) else base + ending

    def ask(self, system: str, question: str, *, tokens: int = 200) -> str:
        """The answer to a question, without the white space around it.

        Raises `EndpointError` that says what happened, after all tries.
        """
        body = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": question},
            ],
            "temperature": 0,
            "max_tokens": tokens,
        }
        reason = ""
        for attempt in range(self.tries):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                return _answer(self._post(json.dumps(body).encode()))
            except urllib.error.HTTPError as error:
                reason = f"status {error.code}: {_quoted(error)}"
                if error.code not in _AGAIN:
                    break
            except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
                reason = f"{getattr(error, 'reason', None) or error or type(error).__name__}"
        raise EndpointError(_without_key(f"{self.address} gave no answer ({reason})."))

    def _post(self, body: bytes) -> bytes:
        key = next((os.environ[name] for name in KEYS if os.environ.get(name)), None)
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.address, body, headers, method="POST")
        try:
            with _OPENER.open(request, timeout=self.timeout) as reply:
                return reply.read()
        except ValueError:  # whose message has the key in it
            raise EndpointError(
                f"the question cannot be sent: {' or '.join(key_names()) or 'the address'} has "
                "characters that a request cannot have, such as a line break."
            ) from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Another host must not be given the key."""

    def redirect_request(self, *args: Any, **more: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


def _answer(raw: bytes) -> str:
    try:
        text = json.loads(raw)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        start = _without_key(raw.decode("utf-8", "replace"))[:_LONGEST]
        raise EndpointError(
            f"the endpoint's answer is not in OpenAI's format: {start!r}"
        ) from error
    if not isinstance(text, str) or not text.strip():
        raise EndpointError("the endpoint's answer is empty.")
    return text.strip()


def _quoted(error: urllib.error.HTTPError) -> str:
    try:
        text = error.read(_LONGEST * 4).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        text = ""
    return " ".join(_without_key(text).split())[:_LONGEST] or str(error.reason)


def _without_key(text: str) -> str:
    """Some endpoints repeat the key in their message."""
    for name in KEYS:
        key = os.environ.get(name, "").strip()
        if key:
            text = text.replace(key, f"<{name}>")
    return text


def key_names() -> Sequence[str]:
    """The variables of the environment that a key is taken from, those that are set."""
    return [name for name in KEYS if os.environ.get(name)]
