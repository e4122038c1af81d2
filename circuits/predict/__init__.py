"""Predicting from inside a model whether its answer is wrong, without fooling ourselves.

`predict` (run.py) joins records and `Vectors` (vectors.py, extract.py, original.py), predicts in
nested grouped folds (folds.py, estimators.py, sequence.py, encode.py, align.py) beside baselines
(baselines.py, surface.py), scores (scores.py), localises (localise.py), audits for leaks (audit.py,
alignment.py, texts.py), and returns `PredictResult` (result.py).
"""

from circuits.labelled import LabelError, Labelled, read_labelled, write_labelled
from circuits.predict.estimators import ESTIMATORS
from circuits.predict.original import read_original, stream_original, write_original
from circuits.predict.result import PredictResult
from circuits.predict.run import SaeFit, predict
from circuits.predict.scores import PredictError
from circuits.predict.vectors import Fitted, JoinError, Vectors

__all__ = [
    "ESTIMATORS",
    "Fitted",
    "JoinError",
    "LabelError",
    "Labelled",
    "PredictError",
    "PredictResult",
    "SaeFit",
    "Vectors",
    "predict",
    "read_labelled",
    "read_original",
    "stream_original",
    "write_labelled",
    "write_original",
]
