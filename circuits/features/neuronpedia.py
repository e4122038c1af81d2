"""Neuronpedia's description of a latent, where the release is there and the network too."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request

HOST = "https://www.neuronpedia.org"


def page(sae: str, latent: int) -> str:
    """The address of a latent's page. sae: its id there, such as gpt2-small/8-res-jb."""
    return f"{HOST}/{sae}/{latent}"


def fetch_description(
    sae: str, latent: int, *, timeout: float = 5.0, host: str = HOST
) -> str | None:
    """Neuronpedia's own description; None when it has none or cannot be reached in time.

    timeout: seconds.
    """
    try:
        with urllib.request.urlopen(f"{host}/api/feature/{sae}/{latent}", timeout=timeout) as reply:
            found = json.load(reply)
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError):
        return None
    explanations = found.get("explanations") if isinstance(found, dict) else None
    for one in explanations or []:
        text = one.get("description") if isinstance(one, dict) else None
        if isinstance(text, str) and text.strip():
            return text.strip()
    return None
