"""Figures. Each takes a finished result and returns a plotly figure that opens without a network.

base.py holds what they share; patch.py those of sweeps; attribution.py, top_latents.py and audit.py
those of attributions; direct.py those of direct effects; latent.py that of a latent.
"""

from circuits.plots.attribution import attribution_heatmap
from circuits.plots.audit import audit_figure
from circuits.plots.base import PlotError, token_labels, visible
from circuits.plots.direct import layers_figure, nodes_figure, waterfall
from circuits.plots.latent import latent_figure
from circuits.plots.patch import patch_heatmap
from circuits.plots.top_latents import top_latents_figure

__all__ = [
    "PlotError",
    "attribution_heatmap",
    "audit_figure",
    "latent_figure",
    "layers_figure",
    "nodes_figure",
    "patch_heatmap",
    "token_labels",
    "top_latents_figure",
    "visible",
    "waterfall",
]
