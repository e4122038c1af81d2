"""One target's way from features to tables: predictions, scores, effects, audit, headline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from circuits.labelled import ERROR, Label, Labelled
from circuits.predict import audit as look
from circuits.predict.alignment import check_alignment
from circuits.predict.baselines import (
    activation_baselines,
    majority,
    nearest_prompt,
    question_baselines,
    surface_held,
)
from circuits.predict.encode import FoldSae
from circuits.predict.estimators import (
    Recipe,
    Shape,
    own_recipe,
    recipe,
    with_front,
)
from circuits.predict.folds import Held, Side, chosen, cross_predict, deal, permuted_auc
from circuits.predict.headline import headline, score_table
from circuits.predict.inputs import SaeFit, bridge, encode, front, frozen
from circuits.predict.localise import Localisation, localise
from circuits.predict.scores import (
    Truth,
    permutations,
)
from circuits.predict.texts import duplicate_pairs, twin_pairs, unite
from circuits.predict.vectors import Fitted, Over, Pool, Vectors
from circuits.saes import SaeSet

PERMUTED_RUNS = 10  # of the whole pipeline, in the audit
Prepare = Callable[[Vectors, np.ndarray], Vectors]


@dataclass(frozen=True, eq=False)
class Data:
    """Records and their vectors, in one order; and those trained on where they are others."""

    records: Sequence[Labelled]
    vectors: Vectors
    groups: list[str]
    train: Sequence[Labelled] | None
    train_vectors: Vectors | None
    train_groups: list[str]

    @classmethod
    def of(cls, records: Any, vectors: Vectors, train: Any, merge: bool) -> Data:
        joined = vectors.join(records)
        other = None if train is None else train[1].join(train[0])
        every = [*records, *(train[0] if train else ())]
        groups = [r.group for r in every]
        if merge:
            texts = [r.text for r in every]
            groups = unite(groups, [*duplicate_pairs(texts), *twin_pairs(texts)])
        n = len(records)
        mine = None if train is None else train[0]
        return cls(records, joined, groups[:n], mine, other, groups[n:])


class Target:
    """One target's way from features to tables."""

    def __init__(self, data: Data, target: str, folds: int, seed: int, targets: int) -> None:
        self.data, self.target, self.seed = data, target, seed
        self.level = 1 - 0.05 / targets
        every = [*data.records, *(data.train or ())]
        labels: list[Label] = sorted({r.target(target) for r in every}, key=str)
        code = {label: i for i, label in enumerate(labels)}
        names = {False: "right", True: "wrong"} if target == ERROR else {}
        self.names = [
            str(names.get(bool(label), label)) if names else str(label) for label in labels
        ]
        classes = np.array([code[r.target(target)] for r in every])
        groups = np.unique([*data.groups, *data.train_groups], return_inverse=True)[1]
        where = deal(classes, groups, folds, seed)
        n = len(data.records)
        self.truth = self._truth(classes[:n], groups[:n], where[:n])
        self.train_truth = (
            self.truth if data.train is None else self._truth(classes[n:], groups[n:], where[n:])
        )
        self.both = self._truth(classes, groups, where)

    def _truth(self, classes: np.ndarray, groups: np.ndarray, folds: np.ndarray) -> Truth:
        return Truth(classes, np.unique(groups, return_inverse=True)[1], folds, len(self.names))

    def run(
        self,
        *,
        estimators: Sequence[str],
        own: dict[str, Any],
        saes: SaeSet | SaeFit | None,
        pool: tuple[Pool, Over],
        align: bool,
        prepare: Prepare | None,
        fitted: Sequence[Fitted],
        progress: bool,
    ) -> tuple[list[pd.DataFrame], dict[str, Any]]:
        """Scores, predictions, features, cells, and what the record says of this target."""
        raw, data = self.data.vectors, self.data
        prepared = raw if prepare is None else prepare(raw, self.truth.classes)
        # SAEs of folds read vectors as they are; what they give is pooled in the pipeline.
        late: tuple[Pool, Over] = ("concat", pool[1]) if isinstance(saes, SaeFit) else pool
        main, dictionary = encode(prepared, saes)
        main = main.pooled(*late)
        side = Side(raw.ids, main.flat(), self.truth)
        source, across = None, None
        declared = [*main.fitted, *fitted, *frozen(own)]
        if data.train_vectors is not None:
            other = encode(data.train_vectors, saes)[0].pooled(*pool)
            declared += [what for what in other.fitted if what not in declared]
            source = Side(other.ids, other.flat(), self.train_truth)
            across = bridge(source, side, data.train or (), data.records, align)
        before, shape = front(main, saes, pool, self.seed)
        classes = len(self.names)
        made = [
            with_front(recipe(name, shape, self.seed, classes), *before) for name in estimators
        ] + [own_recipe(name, one) for name, one in own.items()]
        jobs: list[tuple[str, Callable[[], Held]]] = [
            (one.name, lambda one=one: self._cross(one, source, side, across)) for one in made
        ]
        for given in question_baselines(data.records, data.train):
            jobs.append((given[0].name, lambda given=given: self._surface(given, source, side)))
        if dictionary is not None and source is None:
            plain = Side(raw.ids, raw.flat(), self.truth)
            place = Shape(len(raw.sites), len(raw.positions), raw.width)
            for one in activation_baselines(place, dictionary, len(raw), classes, self.seed):
                jobs.append((one.name, lambda one=one: self._cross(one, None, plain, None)))
        held = [
            job()
            for _, job in tqdm(
                jobs, desc=f"predicting {self.target}", unit="model", disable=not progress
            )
        ]
        ours, baselines = held[: len(made)], held[len(made) :]
        best = chosen(ours, self.truth.folds)
        checks, copied = self._split_checks()
        baselines = [majority(source or side, self.truth), *baselines]
        if copied is not None:
            baselines.append(nearest_prompt(side, copied))
        scores = score_table(self.truth, [best, *ours], baselines, self.level, self.seed)
        spots = self._localise(main, saes, pool)

        def again(codes: np.ndarray) -> np.ndarray:
            if prepare is None:
                return side.features
            return encode(prepare(raw, codes), saes)[0].pooled(*late).flat()

        # The first of the named ones, whose steps all are fitted in folds, and all of one's own.
        permuted = [made[0], *made[len(estimators) :]] if source is None else []
        moved = permutations(self.truth.groups, self.truth.folds, PERMUTED_RUNS, self.seed + 7)
        runs = {one.name: permuted_auc(again, one, side, moved) for one in permuted}
        audit = self._audit(checks, held, declared, runs, scores, spots)
        head = headline(scores, audit)
        about = {
            "classes": self.names,
            "shares": np.bincount(self.truth.classes) / len(self.truth.classes),
            "headline": head,
            "audit": [asdict(check) for check in audit.checks],
            "largest_effect": spots.largest,
            "largest_by_chance": spots.chance,
            "p_largest": spots.p,
            "widening": self.truth.widening,
            "settings": {h.name: list(h.settings) for h in [best, *held]},
        }
        predictions = self._predictions([best, *ours, *baselines])
        tables = [scores, predictions, spots.features, spots.cells]
        for table in tables:
            table.insert(0, "target", self.target)
        return tables, about

    def _cross(self, one: Recipe, source: Side | None, side: Side, bridge: Any) -> Held:
        first, second = (side, None) if source is None else (source, side)
        return cross_predict(one, first, second, seed=self.seed, bridge=bridge)

    def _surface(self, given: Any, source: Side | None, side: Side) -> Held:
        first, second = (side, None) if source is None else (source, side)
        return surface_held(given, first, second, self.seed)

    def _split_checks(self) -> tuple[list[look.Check], np.ndarray | None]:
        """On both sides together; the nearest prompts only where there is one side."""
        every = [*self.data.records, *(self.data.train or ())]
        checks, copied = look.check_split(every, self.both, self.seed)
        return checks, None if self.data.train else copied

    def _audit(
        self,
        checks: list[look.Check],
        held: Sequence[Held],
        declared: Sequence[Fitted],
        runs: dict[str, np.ndarray],
        scores: pd.DataFrame,
        spots: Localisation,
    ) -> look.Audit:
        data, truth = self.data, self.truth
        first = [
            look.check_join(data.vectors, data.records),
            check_alignment(data.vectors, data.records, truth.groups, truth.folds, self.seed),
            look.check_truths(data.records),
        ]
        if data.train is not None and data.train_vectors is not None:
            mine = self.train_truth
            check = check_alignment(
                data.train_vectors, data.train, mine.groups, mine.folds, self.seed
            )
            first.append(replace(check, name="alignment of training vectors"))
        # Training rows of another model are kept apart by group; what was declared is looked at.
        mine = held if data.train is None else ()
        own = look.check_fitted(mine, data.vectors.ids, truth.folds, declared)
        permuted = [look.check_permuted(runs)] if runs else []
        p = float(scores.loc[scores["name"] == "chosen", "p"].iloc[0])
        last = look.check_null(p, spots.p, spots.largest, spots.chance)
        return look.Audit((*first, *checks, own, *permuted, last))

    def _localise(self, main: Vectors, saes: Any, pool: tuple[Pool, Over]) -> Localisation:
        """Of the features as they are; of an SAE fitted on all records where folds have their own.

        It sees no label, so that permuted labels still tell what chance gives.
        """
        vectors = main
        if isinstance(saes, SaeFit):
            shape = (len(main.sites), len(main.positions))
            fit = FoldSae(*shape, saes.latents, saes.active, saes.steps, self.seed)
            latents = fit.fit_transform(main.flat())
            values = latents.reshape(len(main), *shape, saes.latents)
            vectors = replace(main, values=values, kind="latents").pooled(*pool)
        return localise(
            vectors.flat(),
            self.truth.classes,
            self.truth.groups,
            vectors.sites,
            vectors.positions,
            names=self.names,
            seed=self.seed,
        )

    def _predictions(self, held: Sequence[Held]) -> pd.DataFrame:
        """One row a record and predictor: the true class and every class's probability."""
        truth, names = self.truth, np.array(self.names)
        parts = []
        for one in held:
            table: dict[str, Any] = {
                "id": self.data.vectors.ids,
                "group": self.data.groups,
                "fold": truth.folds,
                "name": one.name,
                "class": names[truth.classes],
            }
            table |= {f"p_{i}": one.proba[:, i] for i in range(len(names))}
            parts.append(pd.DataFrame(table))
        return pd.concat(parts, ignore_index=True)
