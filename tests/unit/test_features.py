"""The feature bank against a brute-force computation over everything at once."""

from __future__ import annotations

import json
import signal
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from circuits.cli import app
from circuits.corpora import Corpus
from circuits.features import BankError, FeatureBank, collect_features
from circuits.features.neuronpedia import fetch_description, page
from circuits.features.tally import EDGES, Batch, Tally, TokenCounts
from circuits.models.hooked import HookedModel
from circuits.models.unembed import direct_logits
from circuits.saes import SaeSet, load_saes
from circuits.sites import Site
from circuits.train import extract
from tests import corpus, tiny
from tests.unit.test_saes import LATENTS, WIDTH, make_sae

HOOKS = ["blocks.1.hook_resid_post", "blocks.2.attn.hook_z"]
BEFORE, AFTER, RANKS = 5, 3, 4


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return tiny.bridge("llama")


@pytest.fixture(scope="module")
def saes(model: HookedModel, tmp_path_factory: pytest.TempPathFactory) -> SaeSet:
    folder = tmp_path_factory.mktemp("saes")
    for number, hook in enumerate(HOOKS):
        sae = make_sae("jumprelu", hook, seed=number)
        sae.threshold.data += (
            20.0 * (1 - number) * torch.rand(LATENTS)
        )  # about as many examples as ranks for some
        sae.threshold.data[:3] = 1e6  # dead
        sae.save_model(folder / hook)
    return load_saes(folder, model)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return corpus.corpus(corpus.write(tmp_path_factory.mktemp("texts"), 40), heldout=0.0)


@pytest.fixture(scope="module")
def bank(model: HookedModel, saes: SaeSet, text: Corpus) -> FeatureBank:
    return collect_features(
        model, saes, text, examples=RANKS, before=BEFORE, after=AFTER, progress=False
    )


Everything = list[tuple[int, int, tuple[int, ...], torch.Tensor]]


@pytest.fixture(scope="module")
def everything(model: HookedModel, saes: SaeSet, text: Corpus) -> dict[Site, Everything]:
    """Per site, for every context: its number, document, tokens, and all latents."""
    found: dict[Site, Everything] = {site: [] for site in saes}
    for number, context in enumerate(text.contexts()):
        _, values = model.cache(torch.tensor([context.tokens]), list(saes))
        for site in saes:
            dense = saes[site].encode(values[site])[0]
            found[site].append((number, context.document, context.tokens, dense))
    return found


@pytest.mark.parametrize("which", [0, 1])
def test_rates_histograms_and_tokens(
    bank: FeatureBank, everything: dict[Site, Everything], which: int
) -> None:
    site = bank.sites[which]
    whole = torch.cat([dense[1:] for *_, dense in everything[site]])
    before = [t for _, _, tokens, _ in everything[site] for t in tokens[:-1]]
    at = [t for _, _, tokens, _ in everything[site] for t in tokens[1:]]
    assert bank.record["positions"] == len(whole)
    seen_before = 0
    for latent in range(LATENTS):
        row, active = bank.latent(site, latent), whole[:, latent] != 0
        values = whole[active, latent].double()
        assert row["active"] == len(values)
        assert row["rate"] == pytest.approx(len(values) / len(whole))
        assert row["dead"] == (len(values) == 0)
        if not len(values):
            assert list(row["at"]) == []
            continue
        assert row["mean"] == pytest.approx(float(values.mean()), rel=1e-5)
        assert row["max"] == pytest.approx(float(values.max()), rel=1e-5)
        counts, _ = np.histogram(values.numpy(), EDGES)
        assert np.abs(np.asarray(row["histogram"]) - counts).sum() <= 2  # at an edge, by rounding
        places = active.nonzero()[:, 0].tolist()
        for name, tokens in (("at", at), ("before", before)):
            count = Counter(tokens[i] for i in places)
            assert [count[t] for t in row[name]] == list(row[f"{name}_count"])
            assert list(row[f"{name}_count"]) == sorted(count.values(), reverse=True)[:10]
        seen_before += 1
    assert seen_before > 10
    assert int(bank.dead().loc[str(site), "dead"]) >= 3


@pytest.mark.parametrize("which", [0, 1])
def test_examples_are_the_strongest_of_each_context(
    bank: FeatureBank, everything: dict[Site, Everything], which: int
) -> None:
    site = bank.sites[which]
    table: Any = bank.examples
    table = table[table["site"] == str(site)]
    few = 0
    for latent in range(LATENTS):
        wanted = []
        for number, document, tokens, dense in everything[site]:
            value, place = dense[1:, latent].max(0)
            if value > 0:
                wanted.append((-float(value), number, int(place) + 1, document, tokens, dense))
        wanted.sort(key=lambda w: w[:2])
        mine = table[table["latent"] == latent].sort_values("rank").to_dict("records")
        assert len(mine) == min(RANKS, len(wanted))
        few += 0 < len(mine) < RANKS
        for row, (value, number, place, document, tokens, dense) in zip(mine, wanted, strict=False):
            assert row["value"] == pytest.approx(-value, rel=1e-4)
            if row["context"] != number:  # equal up to the rounding of another batch
                continue
            assert (row["document"], row["position"]) == (document, place)
            for i, where in enumerate(range(place - BEFORE, place + AFTER + 1)):
                inside = 0 <= where < len(tokens)
                assert row["tokens"][i] == (tokens[where] if inside else -1)
                wanted_value = float(dense[where, latent]) if inside and where > 0 else 0.0
                assert row["activations"][i] == pytest.approx(wanted_value, abs=1e-4)
    if which == 0:
        assert few  # the case of fewer examples than ranks is there


def test_an_interrupted_pass_is_a_bank_of_what_was_seen(
    model: HookedModel, saes: SaeSet, text: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = HookedModel.activations, []

    def presses(self: HookedModel, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return real(self, *args)

    monkeypatch.setattr(HookedModel, "activations", presses)
    handler = signal.getsignal(signal.SIGINT)
    bank = collect_features(model, saes, text, progress=False)
    assert bank.record["interrupted"] and len(calls) == 5
    assert signal.getsignal(signal.SIGINT) is handler
    first = collect_features(model, saes, text, num_tokens=bank.record["tokens"], progress=False)
    assert bank.latents["active"].equals(first.latents["active"])


def test_saes_that_take_turns_in_memory_give_the_same_bank(
    model: HookedModel, saes: SaeSet, text: Corpus, bank: FeatureBank
) -> None:
    sources = saes.sources
    small = SaeSet(sources, model.device, memory=1)
    assert not small.fits and saes.fits
    mine = collect_features(
        model, small, text, examples=RANKS, before=BEFORE, after=AFTER, progress=False
    )
    assert mine.descriptions().equals(bank.descriptions())
    assert mine.latents["active"].equals(bank.latents["active"])
    assert mine.record["saes"] == bank.record["saes"]
    assert {"trained_on", "prepend_bos"} <= mine.record["saes"][0].keys()


def test_stored_activations_give_the_same_bank(
    model: HookedModel, saes: SaeSet, tmp_path: Path, bank: FeatureBank
) -> None:
    """Up to bfloat16, in which they are stored."""
    text = corpus.corpus(corpus.write(tmp_path / "texts", 40), heldout=0.2)
    store = extract(model, text, list(saes), tmp_path / "s", num_tokens=10**6, progress=False)
    mine = collect_features(model, saes, store, examples=RANKS, progress=False)
    assert mine.record["positions"] == bank.record["positions"]
    for site in bank.sites:
        one, two = (b.latents[b.latents["site"] == str(site)] for b in (bank, mine))
        assert np.abs(one["rate"].to_numpy() - two["rate"].to_numpy()).max() < 0.02
        assert np.allclose(one["max"], two["max"], rtol=0.02, atol=0.02)


def test_what_an_sae_makes_of_padding_does_not_count() -> None:
    tally = Tally(LATENTS, tiny.VOCAB, ranks=2, before=1, after=1)
    dense = torch.rand(2, 4, LATENTS)
    dense[0, 3:] = float("nan")  # beyond the end of the first context
    dense[:, 0] = float("nan")
    batch = Batch(
        torch.tensor([[1, 2, 3, 0], [4, 5, 6, 7]]),
        torch.tensor([3, 4]),
        torch.arange(2),
        torch.arange(2),
    )
    tally.add(batch, dense)
    assert tally.positions == 5
    assert (tally.active == 5).all()
    assert np.isfinite(tally.total).all() and torch.isfinite(tally.examples.activations).all()


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "transformer"])
@pytest.mark.parametrize("where", ["resid_post", "z"])
def test_direct_logits_are_finite_differences_of_the_final_norm(kind: str, where: Any) -> None:
    """The last site's vectors added to the stream and read at the logits, with the scale divided
    out by hand: scale * change = direct logits, when the vector is orthogonal to the stream."""
    model = tiny.hooked_transformer() if kind == "transformer" else tiny.bridge(kind)
    site = Site(model.n_layers - 1, where)
    row = torch.randn(1, WIDTH)
    mine = direct_logits(model, row, site)[0]
    stream = model.activations(
        torch.tensor([[3, 5, 8]]), [Site(model.n_layers - 1, "resid_post")]
    ).popitem()[1][0, -1]
    module: Any = model.module
    added = row[0]
    if where == "z":
        attention = module.blocks[site.layer].attn
        added = torch.einsum("hd,hdm->m", row.view(model.n_heads, -1), attention.W_O)
        if kind == "gemma2":  # the norm behind the attention, its scale left out
            weight = module.blocks[site.layer].ln1_post.original_component.weight
            assert float(weight.std()) > 0.05
            added = added * (1 + weight)
    unembed = lambda x: module.ln_final(x[None, None])[0, 0] @ module.W_U  # noqa: E731
    centred = kind in ("gpt2", "transformer")
    base = stream - stream.mean() if centred else stream
    direction = added - added.mean() if centred else added
    direction = direction - (direction @ base) / (base @ base) * base  # leaves the scale alone
    step = 1e-3
    change = (unembed(stream + step * direction) - unembed(stream - step * direction)) / (2 * step)
    scale = base.square().mean().sqrt()
    wanted = change * scale + direct_logits(model, (added - direction)[None], Site(0, "resid_post"))
    assert torch.allclose(mine, wanted[0], atol=2e-3 * float(mine.abs().max()) + 1e-4)


def test_token_effects_are_against_the_mean_token(
    model: HookedModel, saes: SaeSet, bank: FeatureBank
) -> None:
    site = bank.sites[0]
    logits = direct_logits(model, saes[site].rows, site)
    logits = logits - logits.mean(1, keepdim=True)
    row = bank.latent(site, 7)
    assert list(row["raised"]) == logits[7].topk(10).indices.tolist()
    assert list(row["lowered"]) == (-logits[7]).topk(10).indices.tolist()
    assert np.allclose(row["raised_by"], logits[7].topk(10).values)
    assert row["lowered_by"][0] < 0 < row["raised_by"][0]


def test_token_counts_stay_bounded_and_say_how_wrong_they_are() -> None:
    draw = torch.Generator().manual_seed(0)
    exact: Counter[tuple[int, int]] = Counter()
    counts = TokenCounts(1000, limit=300)
    for _ in range(60):
        # A few common tokens in each latent, and many rare ones.
        latent = torch.randint(0, 10, (200,), generator=draw)
        common = torch.randint(0, 5, (200,), generator=draw)
        rare = torch.randint(0, 1000, (200,), generator=draw)
        token = torch.where(torch.rand(200, generator=draw) < 0.6, common, rare)
        counts.add(latent, token)
        exact.update(zip(latent.tolist(), token.tolist(), strict=True))
    found = counts.most(5)
    assert len(counts._keys) <= 300
    assert 0 < counts.error < 60
    for latent, tokens in enumerate(found):
        for token, count in tokens:
            assert exact[latent, token] - counts.error <= count <= exact[latent, token]
        assert {t for t, _ in tokens} == set(range(5))
    unbounded = TokenCounts(1000, limit=10**6)
    unbounded.add(torch.tensor([2, 2, 0]), torch.tensor([7, 7, 9]))
    assert (unbounded.most(3), unbounded.error) == ([[(9, 1)], [], [(7, 2)]], 0)


def test_a_bank_read_back_is_the_same(bank: FeatureBank, tmp_path: Path) -> None:
    again = FeatureBank.load(bank.save(tmp_path / "bank"))
    assert again.record == json.loads(json.dumps(bank.record))
    assert again.vocabulary == bank.vocabulary
    assert again.descriptions().equals(bank.descriptions())
    for one, two in zip(
        bank.examples.to_dict("records"), again.examples.to_dict("records"), strict=True
    ):
        assert list(one["tokens"]) == list(two["tokens"])
        assert np.allclose(one["activations"], two["activations"], atol=one["value"] / 500)
    with pytest.raises(
        BankError, match=r"no latent 99 at resid_post\.1; it has resid_post\.1 \(48"
    ):
        again.latent("resid_post.1", 99)


def test_a_compact_bank_has_less_of_the_same(bank: FeatureBank, tmp_path: Path) -> None:
    small = bank.compact(examples=2, before=2, after=1, tokens=3)
    small.save(tmp_path / "small")
    again = FeatureBank.load(tmp_path / "small")
    assert again.record["window"] == [2, 1]
    assert set(again.examples["rank"]) == {0, 1}
    wide = bank.examples.iloc[0]
    narrow = again.examples.iloc[0]
    assert list(narrow["tokens"]) == list(wide["tokens"][BEFORE - 2 : BEFORE + 2])
    assert [len(row) for row in again.latents["raised"]] == [3] * len(again.latents)
    assert again.describe("resid_post.1", 7) == bank.describe("resid_post.1", 7)


def busiest(bank: FeatureBank) -> int:
    """The latent of the first site that is active most."""
    table: Any = bank.latents[bank.latents["site"] == "resid_post.1"]
    return int(table.loc[table["active"].idxmax(), "latent"])


def test_descriptions_and_finding_them(bank: FeatureBank) -> None:
    latent = busiest(bank)
    row = bank.latent("resid_post.1", latent)
    text = bank.describe("resid_post.1", latent)
    first = bank.vocabulary[int(row["at"][0])]
    assert text.startswith(f"on {first} {row['at_count'][0] / row['active']:.0%}")
    assert f"toward {bank.vocabulary[int(row['raised'][0])]}" in text
    assert bank.describe("resid_post.1", 0).startswith("never active at")
    found: Any = bank.find(first)
    assert ((found["site"] == "resid_post.1") & (found["latent"] == latent)).any()


def test_a_card_highlights_the_examples(bank: FeatureBank, tmp_path: Path) -> None:
    card = bank.card("resid_post.1", busiest(bank))
    page = card.save(tmp_path / "card.html").read_text()
    assert card.title in page and "plotly" in page
    assert page.count('class="peak"') == len(card.examples)
    assert f"{card.row['max']:.3g}" in page
    strongest = card.examples[0]
    word = bank.vocabulary[int(strongest["tokens"][BEFORE])]
    assert f'title="{strongest["value"]:.3g}">{word}</span>' in page
    bars = card.figure().data
    assert sum(bars[0].y) == card.row["active"]
    assert max(bars[1].x) == pytest.approx(float(card.row["raised_by"][0]))
    dead = bank.card("resid_post.1", 0)
    assert "never active" in dead.html()


def test_neuronpedia_is_asked_and_its_absence_handled() -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            good = self.path == "/api/feature/gpt2-small/8-res-jb/7"
            self.send_response(200 if good else 404)
            self.end_headers()
            self.wfile.write(b'{"explanations": [{"description": " dogs "}]}' if good else b"no")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"http://127.0.0.1:{server.server_port}"
    try:
        assert fetch_description("gpt2-small/8-res-jb", 7, host=host) == "dogs"
        assert fetch_description("gpt2-small/8-res-jb", 8, host=host) is None
    finally:
        server.shutdown()
        server.server_close()
    assert fetch_description("gpt2-small/8-res-jb", 7, host=host, timeout=0.5) is None
    assert page("gpt2-small/8-res-jb", 7).endswith("neuronpedia.org/gpt2-small/8-res-jb/7")


def test_the_command(tmp_path: Path) -> None:
    tiny.hugging_face("llama").save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    make_sae("jumprelu", HOOKS[0]).save_model(tmp_path / "sae")
    texts = corpus.write(tmp_path / "texts", 12)
    words = ["features", "--model", str(tmp_path / "model"), "--saes", str(tmp_path / "sae")]
    words += ["--corpus", str(texts), "--context", "24", "--out", str(tmp_path / "bank")]
    words += ["--format", "original"]
    done = CliRunner().invoke(app, words, obj=words)
    assert done.exit_code == 0, done.output
    assert "resid_post.1" in done.output and "toward" in done.output
    bank = FeatureBank.load(tmp_path / "bank")
    assert bank.record["command"] == words
    original = json.loads((tmp_path / "bank" / "layer_1_interpretations.json").read_text())
    keys = "feature_id active num_activations top_activation mean_activation common_tokens"
    assert list(original[0]) == [*keys.split(), "top_examples"]
    row, mine = bank.latent("resid_post.1", busiest(bank)), original[busiest(bank)]
    assert mine["num_activations"] == row["active"]
    assert mine["common_tokens"][0] == [bank.vocabulary[row["at"][0]], row["at_count"][0]]
    assert [e["activation"] for e in mine["top_examples"]] == sorted(
        (e["activation"] for e in mine["top_examples"]), reverse=True
    )
    shown = CliRunner().invoke(app, ["show", str(tmp_path / "bank")])
    assert "Latents on" in shown.output
    both = [*words, "--activations", str(tmp_path)]
    assert "contradict each other" in str(CliRunner().invoke(app, both, obj=both).exception)
