"""Hypotheses followed through the layers: the strongest latents of each site's SAE, linked to those
of the next site into tracks with a birth and a death.

`track` (run.py) reads nodes (read.py), links them (link.py), tests the links against shuffled
layers (null.py), checks pairs of latents by ablation (causal.py), joins links into tracks
(chains.py), measures each answer (metrics.py) and returns `Tracks` (result.py); plan.py has every
option.
"""

from circuits.tracks.metrics import METRICS, ConstantMetric
from circuits.tracks.plan import Places, TrackError, TrackPlan
from circuits.tracks.result import Tracks
from circuits.tracks.run import track

__all__ = [
    "METRICS",
    "ConstantMetric",
    "Places",
    "TrackError",
    "TrackPlan",
    "Tracks",
    "track",
]
