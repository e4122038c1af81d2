"""Cards of latents that read images, and the page of all of them."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from circuits.features import BankError, Gallery, LabelledVectors, collect_vectors, input_patterns
from circuits.features.vectors import VectorError
from circuits.saes.sae import Sae
from circuits.sites import Site
from tests.chromium import Chromium, Page, find_chromium
from tests.unit.test_saes import LATENTS, make_sae

WIDTH, SIZE = 12, 6
CLASSES = ("0", "<b>", "2")


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    made = make_sae("jumprelu", "blocks.0.hook_mlp_out", width=WIDTH)
    made.threshold.data[3] = 1e6  # dead
    sae = Sae(made, Site(0, "mlp_out"))
    torch.manual_seed(0)
    first, last = nn.Linear(SIZE * SIZE, WIDTH), nn.Linear(WIDTH, len(CLASSES))
    for layer in (first, last):
        layer.requires_grad_(False)

    def front(images: Tensor) -> Tensor:
        return 4 * first(images.flatten(1))

    def readout(x: Tensor) -> Tensor:
        return last(x.relu())

    images = torch.rand(200, SIZE, SIZE)
    labels = torch.randint(3, (200,))
    parts = [
        LabelledVectors(front(x), y, CLASSES, x)
        for x, y in zip(images.split(100), labels.split(100), strict=True)
    ]
    bank, effects = collect_vectors(sae, parts[0], parts[1], readout, examples=7, model="tiny <i>")
    patterns = input_patterns(front, sae, images[0])
    return Gallery(bank, effects, parts[0], patterns)


def heatmaps(figure: go.Figure) -> list[Any]:
    data: Any = figure.data
    return [t for t in data if t.type == "heatmap"]


def numbers(packed: Any) -> np.ndarray:
    kind = {"u1": np.uint8, "f4": np.float32}[packed["dtype"]]
    raw = np.frombuffer(base64.b64decode(packed["bdata"]), kind)
    return raw.reshape([int(n) for n in packed["shape"].split(",")])


def test_a_card_shows_what_the_bank_says(gallery: Gallery) -> None:
    latent = gallery.alive()[0]
    figure = gallery.card(latent)
    row = gallery.bank.latent(gallery.site, latent)
    assert gallery.images is not None and gallery.patterns is not None
    shown, pattern = heatmaps(figure)
    [best, *_] = gallery.examples(latent)
    whole = numbers(shown.z)
    # Six columns with a gap of one pixel; two lines with room for their labels.
    assert whole.shape == (2 * (SIZE + 2), 6 * (SIZE + 1))
    assert (whole[2 : 2 + SIZE, :SIZE] == gallery.pixels(int(best["context"]))).all()
    assert np.allclose(numbers(pattern.z), gallery.patterns[latent], atol=1e-6)
    assert pattern.zmin == -pattern.zmax == -np.abs(gallery.patterns[latent].numpy()).max()
    # Blue is positive.
    assert (
        pattern.colorscale[0][1] == "rgb(103,0,31)" and pattern.colorscale[-1][1] == "rgb(5,48,97)"
    )
    data: Any = figure.data
    [bars] = [t for t in data if t.type == "bar"]
    assert dict(zip(range(3), bars.y, strict=True)) == {
        i: dict(zip(row["at"], row["at_count"], strict=True)).get(i, 0) for i in range(3)
    }
    lines = {
        t.hovertemplate.split(",")[0]: t for t in data if t.type == "scatter" and t.hovertemplate
    }
    effects, place = gallery.effects, gallery.place(latent)
    for k, name in enumerate(("0", "&lt;b&gt;", "2")):
        line = lines[f"output {name}"]
        assert list(line.x) == [-2, -1, 0, 1, 2]
        assert line.y[2] == 0 and line.y[3] == effects.at(1.0).mean[place, k]
    text = figure.layout.title.text
    assert "tiny &lt;i&gt;" in text and f"active in {row['rate']:.1%} of 100 examples" in text
    labelled = [a.text for a in figure.layout.annotations if a.xref == "x"]
    assert len(labelled) == 7 and labelled[0].endswith(f"{best['value']:.3g}")


def test_dead_latents_have_cards_too(gallery: Gallery) -> None:
    assert "never active in 100 examples" in gallery.card(3).layout.title.text
    assert (
        3 not in gallery.alive() and len(gallery.alive()) == (~gallery.bank.latents["dead"]).sum()
    )


def test_the_page_has_all_latents_and_their_cards(gallery: Gallery, tmp_path: Path) -> None:
    path = gallery.save(tmp_path / "index.html")
    text = path.read_text()
    assert not re.search(r"<(script|link)[^>]+(src|href)=", text)  # opens without a network
    data = re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)
    assert data is not None
    entries = json.loads(data[1])
    assert [e["latent"] for e in entries] == gallery.alive()
    one = entries[2]
    figure = json.loads(gzip.decompress(base64.b64decode(one["card"])))
    assert figure["layout"]["title"]["text"].startswith(f"<b>latent {one['latent']}</b>")
    row = gallery.bank.latent(gallery.site, one["latent"])
    assert one["effect"] == row["effect"] and one["boosted"] == CLASSES[int(row["boosted"])]


@pytest.fixture
def shown(gallery: Gallery, tmp_path: Path) -> Iterator[Page]:
    program = find_chromium()
    if program is None:
        pytest.skip("no chromium on PATH: install one, or name it in CIRCUITS_CHROMIUM")
    path = gallery.save(tmp_path / "index.html")
    with Chromium(program) as running:
        page = running.open(path, 1600)
        yield page
        asked = [url for url in page.requests if not url.startswith("data:")]
        assert page.problems == [] and asked == [path.as_uri()]


def column(page: Page, i: int) -> list[str]:
    cells = f"[...document.querySelectorAll('tbody tr')].map((r) => r.cells[{i}].textContent)"
    return page.run(cells)


def card_of(page: Page, latent: str) -> str:
    """The title of the card once it is that of a latent."""
    wanted = json.dumps(latent)
    return page.run(
        "new Promise((done) => { const look = () => {"
        "const card = document.getElementById('card');"
        f"if (card.dataset.latent === {wanted})"
        "  done(card.querySelector('.gtitle').textContent); else setTimeout(look, 20); };"
        "look(); })"
    )


def test_the_page_sorts_and_shows_cards(gallery: Gallery, shown: Page) -> None:
    rows = gallery.bank.latents.set_index("latent").loc[gallery.alive()]
    assert column(shown, 0) == [str(j) for j in gallery.alive()]
    assert card_of(shown, column(shown, 0)[0]).startswith(f"latent {gallery.alive()[0]}")
    order = sorted(rows.index, key=lambda j: (-rows.loc[j, "effect"], j))
    shown.click("th:nth-child(7)")
    assert column(shown, 0) == [str(j) for j in order]
    shown.click("th:nth-child(7)")
    assert column(shown, 0) == [str(j) for j in order[::-1]]
    shown.click("tbody tr:nth-child(4)")
    assert card_of(shown, str(order[-4])).startswith(f"latent {order[-4]}")
    assert shown.run("location.hash") == f"#{order[-4]}"


def test_the_originals_files(gallery: Gallery, tmp_path: Path) -> None:
    latent = gallery.alive()[1]
    written = gallery.write_original(tmp_path, [latent])
    assert sorted(p.name for p in written) == [
        f"feature_{latent}_gallery.npy",
        f"feature_{latent}_gallery.png",
        f"feature_{latent}_pattern.npy",
        f"feature_{latent}_pattern.png",
    ]
    assert gallery.patterns is not None
    pattern = np.load(tmp_path / f"feature_{latent}_pattern.npy")
    assert np.allclose(pattern, gallery.patterns[latent])
    picture = np.asarray(Image.open(tmp_path / f"feature_{latent}_pattern.png"))
    assert picture.shape == (8 * SIZE, 8 * SIZE, 3)
    i, j = np.unravel_index(np.abs(pattern).argmax(), pattern.shape)
    red, _, blue = picture[8 * i, 8 * j]
    assert (blue > red) == (pattern[i, j] > 0)
    images = np.load(tmp_path / f"feature_{latent}_gallery.npy")
    assert gallery.images is not None
    assert (images[0] == gallery.images[int(gallery.examples(latent)[0]["context"])].numpy()).all()


def test_galleries_that_do_not_fit_are_refused(gallery: Gallery) -> None:
    with pytest.raises(VectorError, match="give images and patterns, or neither"):
        Gallery(gallery.bank, gallery.effects, gallery.explored)
    with pytest.raises(BankError, match="has no latent"):
        gallery.card(LATENTS)
