"""Names of sites are strict."""

import pytest

from circuits.sites import SITE_KINDS, Site, SiteError, parse_kind


@pytest.mark.parametrize("kind", SITE_KINDS)
def test_names_go_both_ways(kind: str) -> None:
    site = Site(12, parse_kind(kind))
    assert Site.parse(str(site)) == site == Site.parse(site.hook_name)
    assert Site(12, "z").hook_name == "blocks.12.attn.hook_z"


@pytest.mark.parametrize("name", ["resid", "resid_pre", "blocks.3.hook_foo", "x.3", "resid_pre.-1"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(SiteError, match="expected"):
        Site.parse(name)


def test_layers_count_from_zero() -> None:
    with pytest.raises(SiteError, match="layers count from 0"):
        Site(-1, "z")


def test_sites_sort_by_layer() -> None:
    assert sorted([Site(2, "mlp_out"), Site(1, "z")])[0].layer == 1
