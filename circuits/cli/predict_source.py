"""Where `circuits predict` has its records and vectors from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.cli import options
from circuits.cli.task_options import check_task_options
from circuits.errors import CircuitsError

if TYPE_CHECKING:
    from circuits.labelled import Labelled
    from circuits.predict import Vectors
    from circuits.predict.extract import Positions
    from circuits.saes import SaeSet
    from circuits.sites import Site


def _read(path: Path, keys: Sequence[str], targets: Sequence[str], folds: int) -> list[Labelled]:
    from circuits.labelled import read_labelled

    records = read_labelled(path, keys)
    _require(records, targets, folds)
    return records


def _require(records: Sequence[Labelled], targets: Sequence[str], folds: int) -> None:
    from circuits.labelled import check_labels

    for target in targets:
        check_labels(records, target, folds)


@dataclass
class Source:
    """Where records and vectors come from."""

    task_name: str | None
    data: Path | None
    data_format: str
    model: str | None
    train_data: Path | None
    train_model: str | None
    features: str
    site: str
    layers: str | None
    positions: str | None
    prepend_bos: bool | None
    batch_size: int
    device: str | None
    dtype: str
    n: int
    seed: int
    surface: Sequence[str]
    targets: Sequence[str]
    folds: int
    cache_dir: Path | None
    task_options: dict[str, Any] = field(default_factory=dict)
    task: Any = None
    places: Positions | None = None

    def check(self) -> None:
        """Look at everything that can be wrong before a model is loaded."""
        from circuits.predict.extract import Positions
        from circuits.sites import parse_kind
        from circuits.task import AnsweredTask, AttentionTask, load_task, require

        parse_kind(self.site)
        if self.layers:
            options.parse_layers(self.layers)
        if self.task_name is not None:
            self.task = require(load_task(self.task_name), AnsweredTask, "circuits predict")
            if self.features == "attention":
                require(self.task, AttentionTask, "--features attention")
            check_task_options(self.task.name, self.task.answered, self.task_options, ("n", "seed"))
        else:
            self.places = Positions.parse(self.positions or "last:4")

    def load(self, name: str | None = None) -> Any:
        """The model."""
        from circuits.models.load import load_model

        if self.task is not None:
            return self.task.load(self.model, device=self.device, dtype=self.dtype)
        return load_model(name or self.model, device=self.device, dtype=self.dtype)

    @property
    def name(self) -> str:
        """What the run is called."""
        return self.task.name if self.task else (self.data.stem if self.data else "custom")

    def gather(
        self, encode: Callable[[Any], SaeSet] | None = None
    ) -> tuple[Any, Sequence[Labelled], Vectors, Any]:
        """(model, records, vectors, records and vectors to train on); None where there are none.

        encode: what loads the SAEs that activations are encoded with, given the model.
        """
        if self.data_format == "original" and self.data is not None:
            from circuits.predict import read_original

            records, vectors = read_original(self.data)
            _require(records, self.targets, self.folds)
            return None, records, vectors, None
        read = [
            _read(path, self.surface, self.targets, self.folds) if path else None
            for path in (self.data, self.train_data)
        ]
        model, train = self.load(), None
        self._look_at_saes(model, encode)
        found = self.extract(model, read[0], self.cache_dir)
        if read[1] is not None:
            other = self.load(self.train_model) if self.train_model else model
            place = self.cache_dir / "train" if self.cache_dir else None
            train = self.extract(other, read[1], place)
        return model, *found, train

    def _look_at_saes(self, model: Any, encode: Callable[[Any], SaeSet] | None) -> None:
        """Before any extraction: SAEs at every site, and text begun as they were trained."""
        if encode is None:
            return
        saes = encode(model)
        missing = [str(site) for site in self.sites(model) if site not in saes.sources]
        if missing:
            raise CircuitsError(
                f"no SAE at {', '.join(missing)}: there are some at "
                f"{', '.join(map(str, saes.sources))}. Choose with --site and --layers."
            )
        if self.prepend_bos is None:
            self.prepend_bos = saes.prepend_bos

    def sites(self, model: Any) -> list[Site]:
        """Where vectors are taken; by default at a quarter and half of the layers and the last."""
        from circuits.sites import Site, parse_kind

        last = model.n_layers - 1
        some = sorted({last // 4, last // 2, last})
        numbers = options.parse_layers(self.layers) if self.layers else some
        return [Site(layer, parse_kind(self.site)) for layer in numbers]

    def extract(
        self, model: Any, records: list[Labelled] | None, folder: Path | None
    ) -> tuple[Sequence[Labelled], Vectors]:
        """Records (the task's own without any) and their vectors."""
        from circuits.predict.extract import extract_vectors, task_vectors

        sites = self.sites(model)
        if self.task is not None:
            answered = self.task.answered(model, n=self.n, seed=self.seed, **self.task_options)
            _require(answered, self.targets, self.folds)
            looking = self.features == "attention"
            return answered, task_vectors(
                self.task, model, answered, sites, attention=looking, folder=folder
            )
        assert records is not None and self.places is not None
        vectors = extract_vectors(
            model,
            records,
            sites,
            self.places,
            attention=self.features == "attention",
            folder=folder,
            batch_size=self.batch_size,
            prepend_bos=self.prepend_bos,
        )
        return records, vectors
