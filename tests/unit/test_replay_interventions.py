"""Changes of latents against the formula x + (new - a) d, written out in float64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from circuits.replay import Change, Other, Reconstruction, ReplayError, edits_of
from circuits.saes import Sae
from circuits.sites import Site
from tests.replayed import LATE, POST, random_saes

LENGTH, ROWS, WIDTH = 5, 3, 32
KINDS = ["standard", "gated", "topk", "jumprelu"]


def activations(seed: int = 0, positions: int = 8) -> Tensor:
    return torch.randn(ROWS, positions, WIDTH, generator=torch.Generator().manual_seed(seed))


def sae_at(site: Site = POST, architecture: str = "jumprelu", **more: object) -> Sae:
    return random_saes([site], architecture, **more)[site]


def coefficient(sae: Sae, x: Tensor, latent: int) -> Tensor:
    """[row, position], from the dense encoding."""
    return sae.coefficients(x.reshape(-1, WIDTH))[:, latent].reshape(x.shape[:2]).double()


def by_hand(sae: Sae, x: Tensor, changes: Sequence[tuple[Tensor, int, Tensor]]) -> Tensor:
    """x + sum of (new - a) d, in float64; changes: (new [row, position], latent, mask)."""
    out = x.double()
    for new, latent, mask in changes:
        delta = (new - coefficient(sae, x, latent)) * mask
        out = out + delta[..., None] * sae.rows[latent].double()
    return out


def often_active(sae: Sae, x: Tensor) -> list[int]:
    """Latents, from the most often active on."""
    rate = (sae.coefficients(x.reshape(-1, WIDTH)) > 0).float().mean(0)
    return rate.argsort(descending=True).tolist()


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("architecture", KINDS)
def test_each_mode_against_the_formula(architecture: str, normalize: str) -> None:
    saes = random_saes([POST], architecture, normalize_activations=normalize)
    sae, x = saes[POST], activations()
    latent = often_active(sae, x)[0]
    found = coefficient(sae, x, latent)
    assert (found > 0).float().mean() > 0.2
    mask = torch.ones(x.shape[1])
    mask[0] = 0
    wanted = {
        Change(POST, latent, "hold", 2.5): torch.full_like(found, 2.5),
        Change(POST, latent, "hold", 0): torch.zeros_like(found),
        Change(POST, latent, "scale", -1.5): -1.5 * found,
        Change(POST, latent, "remove"): torch.zeros_like(found),
    }
    for change, new in wanted.items():
        [edit] = edits_of(saes, [change], LENGTH).values()
        torch.testing.assert_close(
            edit(x, 0).double(), by_hand(sae, x, [(new, latent, mask)]), rtol=0, atol=2e-5
        )


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("architecture", KINDS)
def test_a_few_latents_are_read_as_all_of_them_are(architecture: str, normalize: str) -> None:
    sae = sae_at(architecture=architecture, normalize_activations=normalize)
    x = activations().reshape(-1, WIDTH)
    latents = [40, 3, 3, 17]
    dense = sae.coefficients(x)[:, latents]
    assert (dense > 0).any()
    torch.testing.assert_close(sae.reader(latents)(x), dense, rtol=1e-5, atol=1e-5)
    assert ((sae.reader(latents)(x) != 0) == (dense != 0)).all()


@pytest.mark.parametrize(
    ("where", "skip", "first", "expected"),
    [
        ("prompt", 0, False, [1, 2, 3, 4]),
        ("prompt", 0, True, [0, 1, 2, 3, 4]),
        ("generated", 0, False, [5, 6, 7]),
        ("generated", 2, False, [7]),
        ("all", 0, False, [1, 2, 3, 4, 5, 6, 7]),
        ("all", 1, True, [0, 1, 2, 3, 4, 6, 7]),
    ],
)
def test_positions_are_those_that_were_asked_for(
    where: str, skip: int, first: bool, expected: list[int]
) -> None:
    x = activations()
    change = Change(POST, 3, "hold", 9.0, where, skip, first)  # pyright: ignore
    [edit] = edits_of(random_saes([POST]), [change], LENGTH).values()
    whole = edit(x, 0)
    assert (whole != x).any(-1).all(0).nonzero().flatten().tolist() == expected
    assert (whole != x).any(-1).any(0).nonzero().flatten().tolist() == expected
    # Piece by piece, as generation sees them.
    pieces = [edit(x[:, :LENGTH], 0), *(edit(x[:, p : p + 1], p) for p in range(LENGTH, 8))]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-6)


def test_what_is_not_changed_stays_bit_for_bit() -> None:
    x, saes = activations(), random_saes([POST])
    for change in (Change(POST, 3, "scale", 1.0), Change(POST, 3, "hold", 1.0, "generated", 50)):
        [edit] = edits_of(saes, [change], LENGTH).values()
        assert torch.equal(edit(x, 0), x)
    [edit] = edits_of(saes, [Change(POST, 3, "hold", 4.0, "prompt")], LENGTH).values()
    assert torch.equal(edit(x, 0)[:, LENGTH:], x[:, LENGTH:])


def test_changes_at_one_site_read_the_same_activation() -> None:
    x, saes = activations(), random_saes([POST])
    sae, mask = saes[POST], torch.tensor([0.0, 1, 1, 1, 1, 1, 1, 1])
    one, two = often_active(sae, x)[:2]
    assert abs(float(sae.rows[one] @ sae.rows[two])) > 1e-3  # in turn they would differ
    changes = [Change(POST, one, "hold", 3.0), Change(POST, two, "remove")]
    [edit] = edits_of(saes, changes, LENGTH).values()
    zero = torch.zeros(x.shape[:2]).double()
    expected = by_hand(sae, x, [(zero + 3, one, mask), (zero, two, mask)])
    torch.testing.assert_close(edit(x, 0).double(), expected, rtol=0, atol=2e-5)


def test_values_of_another_run_are_held_where_they_are_given() -> None:
    x, saes = activations(), random_saes([POST])
    sae = saes[POST]
    value = torch.rand(ROWS, 8) * 4
    value[1] = torch.nan
    value[0, 6] = torch.nan
    [edit] = edits_of(saes, [Change(POST, 7, "hold", value)], LENGTH).values()
    mask = ~value.isnan()
    mask[:, 0] = False
    expected = by_hand(sae, x, [(value.nan_to_num().double(), 7, mask)])
    torch.testing.assert_close(edit(x, 0).double(), expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(edit(x[:, 5:7], 5).double(), expected[:, 5:7], rtol=0, atol=2e-5)
    assert edit.by_row
    with pytest.raises(ReplayError, match="give a value"):
        edit(x[:2], 0)
    with pytest.raises(ReplayError, match="to position 8"):
        edit(x[:, :1], 8)


def test_reconstruction_leaves_the_error_out_and_nothing_else() -> None:
    x, saes = activations(), random_saes([POST])
    sae = saes[POST]
    parts = sae.decompose(x)
    expected = x.double() - parts.error.double()
    expected[:, 0] = x[:, 0].double()
    [edit] = edits_of(saes, [Reconstruction(POST)], LENGTH).values()
    torch.testing.assert_close(edit(x, 0).double(), expected, rtol=0, atol=2e-5)
    both = edits_of(saes, [Reconstruction(POST, "prompt"), Change(POST, 3, "hold", 2.0)], LENGTH)
    write = (2.0 - coefficient(sae, x, 3))[..., None] * sae.rows[3].double()
    expected[:, LENGTH:] = x[:, LENGTH:].double()
    expected[:, 1:] += write[:, 1:]
    torch.testing.assert_close(both[POST](x, 0).double(), expected, rtol=0, atol=2e-5)


def test_another_latent_is_written_with_the_same_norm_and_sign() -> None:
    x, saes = activations(), random_saes([POST])
    sae = saes[POST]
    latent = often_active(sae, x)[0]
    change = Change(POST, latent, "scale", 3.0)
    mine = edits_of(saes, [change], LENGTH)[POST](x, 0) - x
    other = edits_of(saes, [Other(change, 11)], LENGTH)[POST](x, 0) - x
    torch.testing.assert_close(mine.norm(dim=-1), other.norm(dim=-1), rtol=1e-4, atol=1e-5)
    assert float(mine.norm(dim=-1).max()) > 0.5
    along = other @ sae.rows[11] / sae.rows[11].norm()
    original = mine @ sae.rows[latent] / sae.rows[latent].norm()
    torch.testing.assert_close(along, original, rtol=1e-4, atol=1e-5)


def test_activations_of_another_type_come_back_in_it() -> None:
    x = activations()
    for dtype in (torch.float64, torch.bfloat16):
        [edit] = edits_of(random_saes([POST]), [Change(POST, 3, "hold", 2.0)], LENGTH).values()
        assert edit(x.to(dtype), 0).dtype == dtype


def test_what_makes_no_sense_is_refused() -> None:
    saes = random_saes([POST])
    for make in (
        lambda: Change(POST, 3, "hold"),
        lambda: Change(POST, 3, "hold", float("nan")),
        lambda: Change(POST, 3, "remove", 2.0),
        lambda: Change(POST, -1, "remove"),
        lambda: Change(POST, 3, "scale", torch.ones(2, 2)),
    ):
        with pytest.raises(ReplayError):
            make()
    with pytest.raises(ReplayError, match="no SAE at"):
        edits_of(saes, [Change(LATE, 3, "remove")], LENGTH)
    with pytest.raises(ReplayError, match="latents 0 to 47"):
        edits_of(saes, [Change(POST, 48, "remove")], LENGTH)
    with pytest.raises(ReplayError, match="latents 0 to 47"):
        edits_of(saes, [Other(Change(POST, 4, "remove"), 48)], LENGTH)
    with pytest.raises(ReplayError, match="changed twice"):
        twice = [Change(POST, 3, "remove", None, "prompt"), Change(POST, 3, "hold", 2.0)]
        edits_of(saes, twice, LENGTH)
    split = [Change(POST, 3, "remove", None, "prompt"), Change(POST, 3, "hold", 2.0, "generated")]
    assert set(edits_of(saes, split, LENGTH)) == {POST}
