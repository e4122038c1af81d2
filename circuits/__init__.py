"""Circuit analysis of language models: which parts, at which token, cause a behaviour.

from circuits import load_model, load_task, patch

model = load_model()                  # the embedded default; or any hub name, folder or object
task = load_task("error_type")
result = patch(model, task)           # residual stream, layer x token
result.heatmap()
"""

from circuits.attribute import Attribution, attribute
from circuits.circuit import CircuitResult, apply_circuit, circuit
from circuits.direct import DirectEffects, direct
from circuits.errors import CircuitsError
from circuits.features import FeatureBank
from circuits.graph import Circuit
from circuits.labelled import read_labelled
from circuits.models.load import load_model
from circuits.patch import PatchResult, patch
from circuits.predict import PredictResult, predict
from circuits.prompts import Pair, PromptPairs, read_pairs
from circuits.replay import ReplayResult, replay
from circuits.saes import load_saes, measure_fidelity
from circuits.sites import Site
from circuits.task import load_task
from circuits.tracks import TrackPlan, Tracks, track

__all__ = [
    "Attribution",
    "Circuit",
    "CircuitResult",
    "CircuitsError",
    "DirectEffects",
    "FeatureBank",
    "Pair",
    "PatchResult",
    "PredictResult",
    "PromptPairs",
    "ReplayResult",
    "Site",
    "TrackPlan",
    "Tracks",
    "apply_circuit",
    "attribute",
    "circuit",
    "direct",
    "load_model",
    "load_saes",
    "load_task",
    "measure_fidelity",
    "patch",
    "predict",
    "read_labelled",
    "read_pairs",
    "replay",
    "track",
]
