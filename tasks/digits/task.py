"""The digits task: an image classifier and its images, for methods that study any torch module."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import filelock
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuits.fetch import cache_folder
from circuits.models.load import find_device, find_dtype
from tasks.digits.data import Digits, load_digits
from tasks.digits.network import (
    KINDS,
    DigitClassifier,
    DigitsError,
    NetworkOptions,
    accuracy,
    train_classifier,
)

_FORMAT = 1  # raise when training changes, so that old caches are not read


@dataclass(frozen=True, eq=False)
class DigitImages:
    """Images of digits and the classifier that is trained on them.

    data: a source of `tasks.digits.data`. seed: draws the split. check_agreement: refuse labels
    that do not belong to the images.

    An image has no tokens: the one position is END, the whole image.
    """

    data: str = "auto"
    seed: int = 0
    check_agreement: bool = True
    name: str = "digits"
    description: str = "which digit an image shows"
    position_names: tuple[str, ...] = ("END",)

    @cached_property
    def digits(self) -> Digits:
        """The images, read once."""
        return load_digits(self.data, self.seed, self.check_agreement)

    def of(self, data: str | Path, seed: int = 0, check_agreement: bool = True) -> DigitImages:
        """The same task with images from elsewhere."""
        return replace(self, data=str(data), seed=seed, check_agreement=check_agreement)

    def load(self, model: str | None = None, **options: Any) -> DigitClassifier:
        """A classifier of this task's images, trained on the first call and kept in the cache.

        model: relu (None), geglu, or a folder that `DigitClassifier.save` wrote.
        options: device and dtype; for those that are trained the fields of `NetworkOptions`, and
            progress.
        Raises `DigitsError` for anything else, and for a classifier of images of another size.
        """
        device = find_device(options.pop("device", None))
        dtype = find_dtype(options.pop("dtype", "float32"))
        progress = bool(options.pop("progress", True))
        if model is None or model in KINDS:
            kind = options.pop("kind", None)
            if model is not None and kind not in (None, model):
                raise DigitsError(f"model is {model!r} and kind {kind!r}: give one of them.")
            try:
                wanted = NetworkOptions(kind=model or kind or "relu", **options)
            except TypeError as error:
                known = ", ".join(NetworkOptions.__dataclass_fields__)
                raise DigitsError(f"{error}: options are device, dtype, {known}.") from error
            found = self._trained(wanted, device, progress)
        else:
            if options:
                raise DigitsError(f"a saved classifier has no options: {', '.join(options)}.")
            found = DigitClassifier.load(Path(model))
            if found.pixels != self.digits.pixels:
                raise DigitsError(
                    f"{model} reads images of {found.pixels} pixels, those of {self.digits.name} "
                    f"have {self.digits.pixels}: choose other data."
                )
        return found.to(device=device, dtype=dtype)

    def classifier(self, model: DigitClassifier) -> nn.Module:
        """The module, from images to logits: the loaded model itself."""
        return model

    def examples(
        self, split: Literal["train", "validation", "test"]
    ) -> tuple[Float[Tensor, "example pixel"], Int[Tensor, " example"]]:
        """Images as rows of numbers from 0 to 1, and their labels."""
        return self.digits[split]

    def _trained(
        self, options: NetworkOptions, device: torch.device, progress: bool
    ) -> DigitClassifier:
        # The device is part of it: sums in another order make other weights.
        key = {"format": _FORMAT, "data": self.digits.sha256, **asdict(options)}
        key |= {"device": device.type, "torch": torch.__version__}
        text = json.dumps(key, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:20]
        folder = cache_folder() / "digits" / digest
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DigitsError(
                f"the cache folder {folder.parent} cannot be made ({error.strerror}): set "
                "CIRCUITS_CACHE to a folder that you may write to."
            ) from error
        with filelock.FileLock(str(folder) + ".lock"):  # others that start meanwhile wait
            if folder.is_dir():
                try:
                    return DigitClassifier.load(folder)
                except DigitsError:
                    shutil.rmtree(folder)  # damaged: it is made again
            made = train_classifier(
                *self.digits["train"], options, device=device, progress=progress
            )
            images, labels = self.digits["validation"]
            key["validation_accuracy"] = accuracy(made(images), labels)
            work = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
            try:
                made.save(work, key)
                work.chmod(0o755)
                work.rename(folder)
            finally:
                shutil.rmtree(work, ignore_errors=True)
        return made


task = DigitImages()
