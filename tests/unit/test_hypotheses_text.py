"""Hypotheses about latents of a language model, from a corpus to the page and on the command line,
with a tiny model one of whose latents is made by hand."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from circuits.cli import app
from circuits.corpora import Corpus, CorpusError, reopen_corpus
from circuits.features import FeatureBank, collect_features
from circuits.hypotheses import (
    Condition,
    HypothesesResult,
    Hypothesis,
    HypothesisError,
    Rules,
    TextEvidence,
    assess,
    from_bank,
    most_active,
    read_text,
)
from circuits.models.hooked import HookedModel
from circuits.models.load import load_model
from circuits.models.patches import Patches
from circuits.saes import SaeSet, load_saes
from circuits.sites import Site
from tests import corpus, tiny

SITE = "resid_post.3"  # the last block: what is added there goes straight to the logits
PLANTED, WORD, RAISED = 5, "dog", "cat"
LENGTH = 16


def write_texts(folder: Path, documents: int = 120) -> Path:
    """Documents whose words do not follow from one another: the class of a token is a matter of the
    token alone."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for number in range(documents):
        words = [draw.choice(corpus.WORDS) for _ in range(70 + number % 17)]
        (folder / f"{number:03d}.txt").write_text(" ".join(words))
    return folder


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return tiny.bridge("llama")


def plant(model: HookedModel, folder: Path) -> Path:
    """An SAE of random latents, one of which separates a word from all others by least squares, and
    writes what raises another word's logit."""
    import sae_lens

    tokenizer: Any = model.tokenizer
    texts = corpus.corpus(write_texts(folder / "to-fit", 20), heldout=0.0)
    tokens = torch.tensor([c.tokens for c in texts.contexts() if len(c.tokens) == 24])
    x = model.activations(tokens, [Site.parse(SITE)])[Site.parse(SITE)][:, 1:].flatten(0, 1)
    wanted = (tokens[:, 1:] == tokenizer.convert_tokens_to_ids(WORD)).flatten().double()
    full = torch.cat([x.double(), torch.ones(len(x), 1)], 1)
    weight = torch.where(wanted > 0, len(wanted) / wanted.sum(), 1.0).sqrt()[:, None]
    fit = torch.linalg.lstsq(weight * full, weight * wanted[:, None]).solution[:, 0]
    torch.manual_seed(0)
    config = sae_lens.JumpReLUSAEConfig(d_in=32, d_sae=48)
    config.metadata = sae_lens.saes.sae.SAEMetadata(
        hook_name="blocks.3.hook_resid_post", model_name="tiny", prepend_bos=False
    )
    sae = sae_lens.JumpReLUSAE(config)
    for parameter in sae.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter)
    sae.threshold.data = sae.threshold.data.abs() + 4
    module: Any = model.module
    unembed = module.W_U - module.W_U.mean(1, keepdim=True)
    sae.W_enc.data[:, PLANTED] = fit[:-1].float()
    sae.b_enc.data[PLANTED] = fit[-1].float()
    sae.threshold.data[PLANTED] = 0.5
    direction = unembed[:, tokenizer.convert_tokens_to_ids(RAISED)]
    sae.W_dec.data[PLANTED] = 40 * direction / direction.norm()
    sae.save_model(folder / "sae")
    return folder / "sae"


@pytest.fixture(scope="module")
def folder(model: HookedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hypotheses")
    plant(model, path)
    write_texts(path / "texts")
    tiny.hugging_face("llama").save_pretrained(path / "model")
    tiny.tokenizer().save_pretrained(path / "model")
    return path


@pytest.fixture(scope="module")
def saes(model: HookedModel, folder: Path) -> SaeSet:
    return load_saes(folder / "sae", model)


def texts_of(folder: Path, heldout: float) -> Corpus:
    return corpus.corpus(folder / "texts", heldout=heldout)


@pytest.fixture(scope="module")
def bank(model: HookedModel, saes: SaeSet, folder: Path) -> FeatureBank:
    return collect_features(
        model, saes, texts_of(folder, 0.4), only="train", examples=4, progress=False
    )


@pytest.fixture(scope="module")
def evidence(model: HookedModel, saes: SaeSet, folder: Path, bank: FeatureBank) -> TextEvidence:
    return read_text(
        model,
        saes,
        texts_of(folder, 0.4),
        {SITE: range(48)},
        unseen=bank.seen,
        only="heldout",
        length=LENGTH,
        progress=False,
    )


def said(claim: Any, kind: Any, value: str | int, latent: int = PLANTED) -> Hypothesis:
    return Hypothesis(SITE, latent, claim, Condition(kind, value))


def test_a_planted_latent_gets_the_right_hypotheses(
    bank: FeatureBank, evidence: TextEvidence
) -> None:
    assert bank.seen is not None
    candidates = from_bank(bank, {SITE: [PLANTED]}, evidence.texts)
    assert said("fires_on", "token", WORD) in candidates
    assert said("raises", "token", RAISED) in candidates
    false = [
        said("fires_on", "token", "mat"),
        said("fires_on", "before", "mat"),
        said("raises", "token", "mat"),
        said("lowers", "token", RAISED),
        said("fires_on", "token", WORD, latent=7),
    ]
    result = assess(
        [*candidates, *false],
        evidence,
        bank.seen.digests,
        Rules(min_active=10, enrichment=2.0),
        progress=False,
    )
    verdicts = {
        (r["latent"], r["claim"], r["kind"], r["about"]): r["verdict"]
        for r in result.table.to_dict("records")
    }
    assert verdicts[PLANTED, "fires_on", "token", WORD] == "holds"
    assert verdicts[PLANTED, "raises", "token", RAISED] == "holds"
    for one in false:
        about = str(one.about.value)
        assert verdicts[one.latent, one.claim, one.about.kind, about] != "holds"
    assert verdicts[PLANTED, "fires_on", "token", "mat"] == "fails"
    assert verdicts[PLANTED, "raises", "token", "mat"] == "fails"
    assert verdicts[PLANTED, "lowers", "token", RAISED] == "fails"


def test_examples_are_what_the_model_makes_of_each_context_alone(
    model: HookedModel, saes: SaeSet, evidence: TextEvidence
) -> None:
    site = Site.parse(SITE)
    start = 0
    texts = evidence.texts
    for context in evidence.contexts[:12]:
        tokens = torch.tensor([context.tokens])
        x = model.activations(tokens, [site])[site]
        dense = saes[site].encode(x)[0, 1:].numpy()
        stop = start + len(dense)
        mine = evidence.active(SITE, range(48))[start:stop]
        assert np.allclose(mine, dense, atol=1e-4)
        assert (evidence.tokens[start:stop] == np.array(context.tokens[1:])).all()
        assert (evidence.before[start:stop] == np.array(context.tokens[:-1])).all()
        assert len(set(evidence.groups[start:stop])) == 1
        for i in (start, stop - 1):
            assert f"<<{texts[evidence.tokens[i]]}>>" in evidence.shown(i)
        start = stop
    word = evidence.members(Condition("token", WORD))
    after = evidence.members(Condition("before", WORD))
    one = int(np.flatnonzero(word)[0])
    assert texts[evidence.tokens[one]] == WORD
    assert all(texts[evidence.before[i]] == WORD for i in np.flatnonzero(after))
    source = evidence.contexts[0].source
    assert evidence.members(Condition("source", source)).all()


@pytest.mark.parametrize("resumes", [True, False])
def test_effects_are_those_of_whole_runs(
    model: HookedModel, evidence: TextEvidence, resumes: bool
) -> None:
    """Against full forwards with one latent added at one place, whether or not the model can
    resume; several groups of pieces, in any order."""
    fresh = replace(evidence)  # baselines of its own
    before, model.can_resume = model.can_resume, resumes
    try:
        rows = fresh.rows(SITE)
        directions = np.stack([rows[PLANTED], 0.5 * rows[9]]).astype(np.float64)
        targets = [np.array([3]), np.array([4, 11])]
        places = np.array([40, 2, 17])
        got = fresh.effect(SITE, directions, targets, places)
    finally:
        model.can_resume = before
    last = torch.tensor([LENGTH - 1])
    for i, place in enumerate(places):
        tokens = fresh.pieces[place][None]
        plain = model.run(tokens)[0].double()
        for j, direction in enumerate(torch.from_numpy(directions).float()):
            patch = Patches(Site.parse(SITE), torch.tensor([0]), last, direction[None], add=True)
            change = model.run(tokens, [patch])[0].double() - plain
            for k, target in enumerate(targets):
                wanted = float(change[target].mean() - change.mean())
                assert got[i, j, k] == pytest.approx(wanted, abs=1e-4)


def test_documents_of_the_bank_are_left_out_and_refused(
    model: HookedModel, saes: SaeSet, folder: Path, bank: FeatureBank
) -> None:
    seen = bank.seen
    assert seen is not None
    text = texts_of(folder, 0.4)
    split = {c.digest: c.split for c in text.contexts()}
    assert seen.digests == {f"{d:016x}" for d, s in split.items() if s == "train"}
    every = [t for c in text.contexts("train") for t in c.tokens[1:]]
    counts = dict(zip(seen.tokens["token"], seen.tokens["count"], strict=True))
    assert counts == {t: every.count(t) for t in set(every)}
    small: dict[str, Any] = {"length": 8, "progress": False}
    mine = read_text(model, saes, text, {SITE: [5]}, unseen=seen, **small)
    assert not mine.ids & seen.digests and mine.left_out == len(seen.digests)
    assert {split[c.digest] for c in mine.contexts} == {"heldout"}
    careless = read_text(model, saes, text, {SITE: [5]}, **small)
    with pytest.raises(HypothesisError, match="to test on were used to make the hypotheses"):
        assess([said("fires_on", "token", WORD)], careless, seen.digests, progress=False)
    with pytest.raises(HypothesisError, match=r"no document is left to test on: \d+ were seen"):
        read_text(model, saes, text, {SITE: [5]}, unseen=seen, only="train", **small)
    # Another version of a document is the same document.
    path = next(
        p for p in sorted((folder / "texts").iterdir()) if p.name in seen.documents["name"].tolist()
    )
    changed = folder / "changed"
    changed.mkdir()
    (changed / path.name).write_text(path.read_text() + " dog")
    source = replace(corpus.corpus(changed).sources[0], name=seen.documents["source"][0])
    edited = replace(text, sources=(source,))
    with pytest.raises(HypothesisError, match="no document is left"):
        read_text(model, saes, edited, {SITE: [5]}, unseen=seen, **small)


def test_a_bank_keeps_what_it_has_seen(bank: FeatureBank, tmp_path: Path) -> None:
    again = FeatureBank.load(bank.save(tmp_path / "bank"))
    assert again.seen is not None and bank.seen is not None
    assert again.seen.documents.equals(bank.seen.documents)
    assert again.seen.tokens.equals(bank.seen.tokens)
    assert bank.compact().seen is bank.seen
    for name in ("documents", "tokens"):
        (tmp_path / "bank" / f"{name}.parquet").unlink()
    old = FeatureBank.load(tmp_path / "bank")
    with pytest.raises(HypothesisError, match="does not say which documents it has seen"):
        from_bank(old, {SITE: [PLANTED]}, [])


def test_a_corpus_is_opened_again_from_its_description(folder: Path) -> None:
    text = texts_of(folder, 0.4)
    again = reopen_corpus(text.describe(), tiny.tokenizer())
    assert list(again.contexts()) == list(text.contexts())
    other = text.describe()
    other["sources"][0]["sha256"] = "0"
    with pytest.raises(CorpusError, match="is not what it was when the record was made"):
        reopen_corpus(other, tiny.tokenizer())
    with pytest.raises(CorpusError, match="does not say which corpus"):
        reopen_corpus({}, tiny.tokenizer())


def test_stored_activations_know_their_documents(
    model: HookedModel, saes: SaeSet, folder: Path, tmp_path: Path
) -> None:
    from circuits.train import extract

    text = texts_of(folder, 0.2)
    store = extract(model, text, list(saes), tmp_path / "s", num_tokens=10**6, progress=False)
    mine = collect_features(model, saes, store, progress=False).seen
    direct = collect_features(model, saes, text, progress=False).seen
    assert mine is not None and direct is not None
    assert mine.documents.equals(direct.documents) and mine.tokens.equals(direct.tokens)


def test_what_text_does_not_have_is_refused(
    model: HookedModel, saes: SaeSet, folder: Path, evidence: TextEvidence
) -> None:
    wrong = [
        (Condition("label", "3"), "text has no labels"),
        (Condition("token", "doggo"), "is no token of this model. It is read as"),
        (Condition("token", " dog"), "Tokens count their spaces; there are 'dog'"),
        (Condition("token", 10**6), "there is no token 1000000"),
        (Condition("class", "verbs"), "unknown class of tokens 'verbs': expected one of digits"),
        (Condition("source", "wiki"), "no document is from 'wiki': there are "),
    ]
    for about, match in wrong:
        with pytest.raises(HypothesisError, match=match):
            assess([Hypothesis(SITE, 5, "fires_on", about)], evidence, [], progress=False)
    text = texts_of(folder, 0.0)
    with pytest.raises(HypothesisError, match=r"no latents \[48\] at resid_post\.3"):
        read_text(model, saes, text, {SITE: [48]}, progress=False)
    with pytest.raises(HypothesisError, match=r"no SAE at resid_post\.2"):
        read_text(model, saes, text, {"resid_post.2": [1]}, progress=False)


def invoke(*words: Any) -> Any:
    told = [str(w) for w in words]
    return CliRunner().invoke(app, told, obj=told)


def test_the_command(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(
        f"- {{site: {SITE}, latent: {PLANTED}, fires_on: {{token: {WORD}}}, note: planted}}\n"
        f"- {{site: {SITE}, latent: {PLANTED}, fires_on: {{token: mat}}}}\n"
    )
    shared = ["--model", folder / "model", "--saes", folder / "sae"]
    made = invoke(
        "features", *shared, "--corpus", folder / "texts", "--context", 24, "--heldout", 0.4,
        "--out", tmp_path / "bank",
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    words = ["hypotheses", *shared, "--bank", tmp_path / "bank", "--out", tmp_path / "run"]
    words += ["--latents", f"{SITE}:{PLANTED}", "--file", own, "--min-active", 10]
    done = invoke(*words)
    assert done.exit_code == 0, (done.output, done.exception)
    result = HypothesesResult.load(tmp_path / "run")
    mine: Any = result.table[result.table["origin"] == "person"]
    assert mine["verdict"].tolist() == ["holds", "fails"]
    assert set(result.table["claim"]) == {"fires_on", "raises"}
    assert result.headline() in " ".join(done.output.split())
    assert result.record["split"] == "heldout" and result.record["command"][0] == "hypotheses"
    assert result.record["evidence"]["documents"] > 5
    shown = invoke("show", tmp_path / "run")
    assert "fires on the token dog" in " ".join(shown.output.split())
    top = invoke(*words[:7], "--out", tmp_path / "top", "--top", 2)
    assert top.exit_code == 0, (top.output, top.exception)
    bank = FeatureBank.load(tmp_path / "bank")
    chosen = most_active(bank, [SITE], 2)
    found = HypothesesResult.load(tmp_path / "top").table
    assert sorted(set(found["latent"])) == sorted(chosen[SITE])
    assert set(found["origin"]) == {"evidence"}


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--latents", f"{SITE}:5", "--top", 3], "contradict each other"),
        (["--describe", "http://localhost:1/v1"], "belong together"),
        (["--latents", "5"], "expected SITE:NUMBERS"),
        (["--enrichment", 0.5], "the enrichment must be 1 or more"),
    ],
)
def test_options_that_cannot_be(more: list[Any], match: str) -> None:
    assert match in str(invoke("hypotheses", *more).exception)


def test_a_bank_of_another_model_or_other_saes_is_refused(
    folder: Path, bank: FeatureBank, tmp_path: Path
) -> None:
    same = load_model(folder / "model").sha256  # that of a folder is of its files
    other = [{**s, "sha256": "0"} for s in bank.record["saes"]]
    record = {**bank.record, "model_sha256": same, "saes": other}
    replace(bank, record=record).save(tmp_path / "saes")
    replace(bank, record={**bank.record, "model_sha256": "0"}).save(tmp_path / "model")
    for name, match in (("saes", r"other SAEs at resid_post\.3"), ("model", "another model")):
        words = ["--model", folder / "model", "--saes", folder / "sae", "--out", tmp_path / "run"]
        done = invoke("hypotheses", *words, "--bank", tmp_path / name, "--top", 1)
        assert re.search(match, str(done.exception)), done.exception
