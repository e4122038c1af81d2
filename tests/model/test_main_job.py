"""The main job on the embedded model: where the error type sits, cell for cell."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from circuits import load_task, patch
from circuits.models.hooked import HookedModel
from circuits.patch import PatchResult
from tests.unit.test_patch import _transformer_lens_sweep


@pytest.fixture(scope="module")
def result(model: HookedModel) -> PatchResult:
    return patch(model, load_task("error_type"), n_pairs=4, progress=False)


def test_recovery_moves_from_the_operator_to_the_last_token(result: PatchResult) -> None:
    share = result.summary().pivot(index="layer", columns="position", values="recovery")
    assert (share.loc[0:22, 4] > 0.35).all() and (share.loc[24:, 4] < 0.05).all()
    assert share.loc[22, 19] < 0.5
    assert share.loc[24, 19] > 0.85
    [move] = result.moves().to_dict("records")
    assert (move["before"], move["after"]) == (22, 23)
    assert (move["from_position"], move["to_position"]) == (4, 19)
    assert (result.scores.query("position < 4")["recovery"] == 0).all()


def test_a_whole_pair_equals_transformer_lens_own_sweep(model: HookedModel) -> None:
    """100 full forwards of TransformerLens, cell by cell."""
    pairs = load_task("error_type").pairs(model, n=1)
    layers = [0, 11, 22, 23, 29]
    ours = patch(model, pairs, layers=layers, progress=False)
    found = ours.scores["logit_difference"].to_numpy().reshape(len(layers), 20)
    cells = pd.DataFrame({"layer": np.repeat(layers, 20), "pos": np.tile(np.arange(20), 5)})
    theirs = _transformer_lens_sweep(model, pairs, "get_act_patch_resid_pre", cells)
    assert np.abs(found - theirs.reshape(found.shape)).max() < 1e-4


def test_ioi_sits_where_it_is_known_to(model: HookedModel) -> None:
    """The repeated name, then the last token; names in the first clause carry nothing by
    themselves, because both prompts introduce the same two."""
    result = patch(model, load_task("ioi"), n_pairs=3, layers=[0, 28], progress=False)
    table = result.summary().set_index(["layer", "position"])["recovery"]
    named = result.prompts.positions[0]
    assert table[0, named["S2"]] > 0.9 and table[28, named["END"]] > 0.9
    assert abs(table[0, named["END"]]) < 0.1 and abs(table[28, named["S2"]]) < 0.1
    assert table[0, named["IO"]] == table[0, named["S1"]] == 0


def test_noising_and_denoising_agree_about_the_last_layer(model: HookedModel) -> None:
    task = load_task("error_type")
    options = {"n_pairs": 2, "layers": [29], "site": "resid_post", "progress": False}
    for direction in ("denoising", "noising"):
        table = patch(model, task, direction=direction, **options).summary()
        assert abs(float(table["share"].iloc[-1]) - 1) < 1e-4


def test_heads_are_patched(model: HookedModel) -> None:
    result = patch(model, load_task("error_type"), site="z", n_pairs=2, progress=False)
    table = result.summary()
    assert len(table) == 30 * 9 and table["position"].isna().all()
    assert table["share"].abs().max() > 0.05
    assert result.heatmap().layout.xaxis.title.text == "attention head"


def test_the_batch_size_moves_numbers_by_rounding_only(model: HookedModel) -> None:
    """A millionth of the logits' size; products of other shapes round differently in float32."""
    pairs = load_task("error_type").pairs(model, n=1)
    size = float(model.run(torch.tensor(pairs.clean_tokens)).abs().max())
    found = [
        patch(model, pairs, layers=[12, 24], batch_size=n, progress=False).scores["metric"]
        for n in (1, 7, None)
    ]
    assert (found[0] - found[1]).abs().max() < 2e-6 * size
    assert (found[0] - found[2]).abs().max() < 2e-6 * size


def test_memory_of_a_sweep_is_bounded(model: HookedModel) -> None:
    """However many pairs there are, only a few are held at a time."""
    from circuits.models.resume import Baseline

    held: list[int] = []
    original = HookedModel.baseline

    def counting(self: HookedModel, *args: object, **kwargs: object) -> Baseline:
        made = original(self, *args, **kwargs)  # pyright: ignore
        held.append(made.inputs.tokens.shape[0])
        return made

    with pytest.MonkeyPatch.context() as patcher:
        patcher.setattr(HookedModel, "baseline", counting)
        patch(model, load_task("error_type"), n_pairs=20, layers=[29], progress=False)
    assert sum(held) == 20 and max(held) <= 8
    assert torch.is_grad_enabled()
