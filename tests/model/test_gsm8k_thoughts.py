"""The embedded CODI: what its card says, and what its thoughts carry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from circuits import load_task
from circuits.attribute import attribute
from circuits.circuit.find import CircuitError, circuit
from circuits.cli import app
from circuits.graph import Circuit
from circuits.models.hooked import HookedModel
from circuits.models.patterns import attention_patterns
from circuits.models.thoughts import Thoughts
from circuits.patch import patch
from circuits.predict.extract import task_vectors
from circuits.predict.texts import twin_pairs, words
from circuits.prompts import PromptPairs
from circuits.saes import load_saes
from circuits.sites import Site
from circuits.task import TaskError
from tasks.gsm8k_thoughts.chains import Chains, draw_chains
from tasks.gsm8k_thoughts.model import (
    CONTROL,
    LARGE,
    LARGE_CONTROL,
    SEEDS,
    control_of,
    embedded_folder,
    read_card,
)
from tasks.gsm8k_thoughts.pairs import FAMILIES, answers_of, chain_pairs, prompts_of
from tasks.gsm8k_thoughts.study.changes import (
    ablations,
    by_count,
    continued,
    interchange,
    necessity,
)
from tasks.gsm8k_thoughts.study.readings import logit_lens, probes
from tasks.gsm8k_thoughts.study.result import ThoughtStudy, study
from tasks.gsm8k_thoughts.study.swaps import mediation, swap, whole_thoughts

TASK: Any = load_task("gsm8k_thoughts")


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return TASK.load()


@pytest.fixture(scope="module")
def chains(model: HookedModel) -> Chains:
    return draw_chains(np.random.default_rng(11), 240, 3, 20, "held_out")


@pytest.fixture(scope="module")
def pairs(model: HookedModel) -> dict[str, PromptPairs]:
    return {f: TASK.pairs(model, contrast=f, n=32) for f in FAMILIES}


@pytest.mark.parametrize("seed", [*SEEDS, *LARGE])
def test_the_cards_hold(seed: str) -> None:
    """The bar: nine tenths with all thoughts, four at most with none; the card is the model's. One
    seed of the larger problems misses it, which is why they are not the default."""
    card = read_card(embedded_folder(f"embedded/{seed}"))
    assert (card["accuracy_after_thoughts"][6] >= 0.9) == (seed != "large2")
    assert card["accuracy_after_thoughts"][0] <= 0.4
    model = TASK.load(f"embedded/{seed}")
    low, high = card["options"]["steps"]
    for steps in range(low, high + 1):
        rng, numbers = np.random.default_rng(5), card["options"]["numbers"]
        counts = by_count(model, draw_chains(rng, 500, steps, numbers, "held_out"))
        # Two draws of held-out problems: four standard errors.
        for _, row in counts.iterrows():
            said = card["accuracy_after_thoughts_by_steps"][str(steps)][int(row["count"])]
            spread = max(said * (1 - said), 0.01) ** 0.5
            assert abs(row["accuracy"] - said) < 4 * spread * (1 / 500 + 1 / 2000) ** 0.5


@pytest.mark.parametrize("control", [CONTROL, LARGE_CONTROL])
def test_the_controls_have_no_thoughts(control: str) -> None:
    card = read_card(embedded_folder(f"embedded/{control}"))
    assert card["options"]["thoughts"] == 0 and len(card["accuracy_after_thoughts"]) == 1


def test_the_embedded_models_are_small() -> None:
    files = [p for p in embedded_folder().parent.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 8 * 2**20


def test_families_are_what_they_say(model: HookedModel) -> None:
    for family in FAMILIES:
        for clean, corrupted, step in chain_pairs(model, family, 12, 3, "explored"):
            both = clean, corrupted
            assert all(one.held_out().all() for one in both)
            for one in both:
                assert (answers_of(model, one)[0] == one.answers).all()
            assert clean.answers != corrupted.answers
            assert (clean.signs == corrupted.signs).all()
            assert (clean.letters == corrupted.letters).all()
            moved = np.flatnonzero(clean.numbers[0] != corrupted.numbers[0]).tolist()
            same = clean.values[0, :-1] == corrupted.values[0, :-1]
            if family == "null":
                assert moved == [0, 1, 3] and same.all()
            elif family == "last":
                assert moved == [3] == [step] and same.all()
            elif family == "first":
                assert moved == [0] and not same.any()
            else:
                assert moved == [2] == [step] and same.tolist() == [True, False]


def test_positions_have_their_names(model: HookedModel, pairs: dict[str, PromptPairs]) -> None:
    for family, found in pairs.items():
        for i in range(len(found)):
            at, tokens = found.positions[i], found.clean_strings[i]
            assert tokens[at["bot"]] == "<bot>" and tokens[at["eot"]] == "<eot>"
            assert [tokens[at[f"t{k}"]] for k in range(1, 7)] == ["<thought>"] * 6
            assert tokens[at["answer"]] == "answer" and at["answer"] == at["END"]
            where = at["operand"]
            assert found.clean_tokens[i][where] != found.corrupted_tokens[i][where], family


def test_no_problem_is_explored_and_held_out(model: HookedModel) -> None:
    """On neither side of a pair, whatever its letters."""
    for family in FAMILIES:
        sides = [
            {
                key
                for clean, corrupted, _ in chain_pairs(model, family, 100, 0, split)
                for key in (*clean.keys(), *corrupted.keys())
            }
            for split in ("explored", "held_out")
        ]
        assert not sides[0] & sides[1], family


def test_a_control_is_one(model: HookedModel) -> None:
    for other in (SEEDS[1], LARGE_CONTROL):  # one with thoughts, one of other problems
        card = read_card(embedded_folder(f"embedded/{other}"))
        with pytest.raises(TaskError, match="trained with --thoughts 0"):
            study(model, TASK, n_pairs=2, n_problems=50, control=card, progress=False)
    assert embedded_folder(control_of("embedded")).name == CONTROL
    assert embedded_folder(control_of(f"embedded/{LARGE[2]}")).name == LARGE_CONTROL
    alone = TASK.load(f"embedded/{CONTROL}")
    with pytest.raises(TaskError, match="none to study"):
        study(alone, TASK, n_pairs=2, n_problems=50, progress=False)
    with pytest.raises(TaskError, match="none to study"):
        TASK.answered(alone, n=10)


def test_attention_to_thoughts_is_that_of_thoughts(model: HookedModel, chains: Chains) -> None:
    tokens = prompts_of(model, chains.take(slice(0, 4)))
    found = attention_patterns(model, tokens, [0, 1])
    plain = model.module
    held = model.roll(model.inputs(tokens))
    embedded = plain.original_model.transformer.wte(tokens).clone()
    embedded[:, list(held.slots)] = held.embeddings
    outer: Any = AutoModelForCausalLM.from_pretrained(
        embedded_folder(), dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        expected = outer(inputs_embeds=embedded, output_attentions=True).attentions
    for layer in (0, 1):
        assert (found[layer] - expected[layer]).abs().max() < 1e-4


def test_attention_between_thoughts_as_features(model: HookedModel) -> None:
    records = TASK.answered(model, n=12)
    found = TASK.attention(model, records, [0, 1])
    assert found.shape == (12, 2, 27, model.n_heads) and len(TASK.attention_positions) == 27
    tokens = torch.tensor(
        [
            model.tokenizer(f"{r.prompt} <bot> {'<thought> ' * 6}<eot> answer")["input_ids"]
            for r in records
        ]
    )
    patterns = attention_patterns(model, tokens, [0, 1])
    where = {f"t{i + 1}": 21 + i for i in range(6)} | {"answer": 28}
    for i, name in enumerate(TASK.attention_positions):
        looks, at = (where[end] for end in name.split("<"))
        for layer in (0, 1):
            assert torch.equal(found[:, layer, i], patterns[layer][:, :, looks, at])
    vectors = task_vectors(TASK, model, records, [Site(1, "resid_post")], attention=True)
    assert vectors.kind == "attention" and vectors.sites == ("attention.1",)
    assert np.array_equal(vectors.values[:, 0], found[:, 1].numpy())


def test_twins_are_compared_without_their_letters(model: HookedModel) -> None:
    records = TASK.answered(model, n=1000)
    seen = twin_pairs([r.text for r in records])
    assert len(seen) > 10
    one, other = (records[i] for i in seen[0])
    assert words(one.text) != words(other.text) and one.group != other.group
    assert len(twin_pairs([r.prompt for r in records])) < len(seen) / 3
    # Only letters are named anew.
    numbers = [[w for w in r.prompt.split() if not w.isalpha()] for r in (one, other)]
    assert numbers == [[w for w in r.text.split() if not w.isalpha()] for r in (one, other)]


def test_thoughts_in_one_pass_and_stepped(model: HookedModel, chains: Chains) -> None:
    tokens = prompts_of(model, chains)
    stepped = model.run(tokens)
    with model.thinking("frozen"):
        assert (model.run(tokens) - stepped).abs().max() < 1e-4
        assert model.thinks(tokens) == "frozen"
    assert model.thinks(tokens) == "rerolled"


def test_the_answer_goes_through_the_thoughts(
    model: HookedModel, pairs: dict[str, PromptPairs]
) -> None:
    """What changes the last value before the answer is carried by thoughts, and only that."""
    for family, low, high in (("first", 0.8, 1.05), ("later", 0.8, 1.05), ("null", -0.05, 0.05)):
        found = mediation(model, pairs[family])
        assert low < found["mediated"] < high, family
        swaps: Any = whole_thoughts(model, pairs[family])
        together = swaps[swaps["place"] == "all"]
        assert together["recovery"].between(low - 0.1, high).all(), family
        if family == "null":
            thoughts = swaps[swaps["place"] != "operands"]
            assert (thoughts["flips"] <= 0.05).all()
        else:
            # Rerolled, the operands alone are the clean problem.
            whole = swaps[(swaps["place"] == "operands") & (swaps["thoughts"] == "rerolled")]
            assert abs(float(whole["recovery"].iloc[0]) - 1) < 1e-4


def test_swaps_are_single_exact_patches(model: HookedModel, pairs: dict[str, PromptPairs]) -> None:
    """Each cell of `swap` against one run of the whole prompt with embeddings written in."""
    [group] = pairs["first"].groups()
    place = [pairs["first"].positions[0]["t2"], pairs["first"].positions[0]["t4"]]
    thoughts = model.thoughts
    assert thoughts is not None
    clean = model.roll(thoughts.inputs(group.clean)).embeddings
    held = model.roll(thoughts.inputs(group.corrupted))
    assert clean is not None and held.embeddings is not None
    mixed = held.embeddings.clone()
    mixed[:, [1, 3]] = clean[:, [1, 3]]
    expected = model.run(replace(held, embeddings=mixed))
    site = Site(0, "resid_pre")
    with model.thinking("frozen"):
        values = model.cache(group.clean, [site])[1][site]
        found = swap(model, group.corrupted, [place], values)[0]
    assert (found - expected).abs().max() < 1e-4


def test_patching_agrees_with_swaps(model: HookedModel, pairs: dict[str, PromptPairs]) -> None:
    found = patch(model, TASK, pairs=pairs["later"], layers=[0], progress=False)
    assert found.record["thoughts"] == "rerolled"
    swaps: Any = whole_thoughts(model, pairs["later"])
    names = found.named_positions()
    for _, row in found.summary().iterrows():
        name = names.get(int(row["position"]), "").split("/")[0]
        mine = swaps[(swaps["place"] == name) & (swaps["thoughts"] == "rerolled")]
        if len(mine):
            assert abs(float(mine["recovery"].iloc[0]) - row["share"]) < 1e-4


def test_what_follows_a_value() -> None:
    chains = draw_chains(np.random.default_rng(0), 50, 3, 20, "train")
    for step in (1, 2, 3):
        assert (continued(chains, step, chains.values[:, step - 1]) == chains.answers).all()
    v = np.arange(50)
    last = [
        {"+": a + b, "-": a - b, "*": a * b}["+-*"[s]]
        for a, s, b in zip(v, chains.signs[:, 2], chains.numbers[:, 3], strict=True)
    ]
    assert continued(chains, 2, v).tolist() == last
    assert continued(chains, 3, v).tolist() == v.tolist()


def test_answers_follow_exchanged_thoughts(model: HookedModel, chains: Chains) -> None:
    found: Any = interchange(model, chains)
    whole = found[(found["place"] == "all") & (found["value"] == "v2")]
    # A third of the answers, three times what chance gives, in both modes; far from all of them.
    assert (whole["low"] > 2 * whole["chance"]).all() and (whole["low"] > 0.15).all()
    assert (found["chance"] < 0.2).all() and (found["couples"] > 20).all()


def test_replaced_thoughts_cost_the_answer(model: HookedModel, chains: Chains) -> None:
    found: Any = ablations(model, chains)
    assert (found[found["place"] == "all"]["accuracy"] < 0.45).all()


def test_noise_has_the_thoughts_own_spread() -> None:
    from tasks.gsm8k_thoughts.study.changes import _noise  # pyright: ignore

    draw = torch.Generator().manual_seed(0)
    x = (
        torch.randn(4000, 1, 3, generator=draw)
        @ torch.tensor([[2.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.1]])
        + 5
    )
    made = _noise(x, draw)
    assert (made.mean(0) - x.mean(0)).abs().max() < 0.2
    assert (torch.cov(made[:, 0].T) - torch.cov(x[:, 0].T)).abs().max() < 0.5
    # Draws are not the thoughts they are drawn from.
    pairs = torch.stack([made[:, 0, 1] - made[:, 0, 1].mean(), x[:, 0, 1] - x[:, 0, 1].mean()])
    assert abs(float(torch.corrcoef(pairs)[0, 1])) < 0.1


def test_the_lens_is_the_models_own_unembedding(model: HookedModel, chains: Chains) -> None:
    """At eot's next position, the answer's, it would be the output; at thoughts, a direct read."""
    few = chains.take(slice(0, 20))
    lens: Any = logit_lens(model, few)
    tokens = prompts_of(model, few)
    module: Any = model.module
    at = 6 * 3 + 2 + 4  # t4
    x = model.activations(tokens, [Site(1, "resid_post")])[Site(1, "resid_post")][:, at]
    vocabulary = model.thoughts.vocabulary  # type: ignore[union-attr]
    share = module.unembed(module.ln_final(x[:, None]))[:, 0].softmax(-1)
    wanted = share[torch.arange(20), torch.from_numpy(vocabulary.number(few.values[:, 1]))]
    row = lens[(lens["place"] == "t4") & (lens["layer"] == 1) & (lens["reading"] == "v2")]
    assert abs(float(row["probability"].iloc[0]) - float(wanted.mean())) < 1e-5


def test_probes_read_what_is_there(model: HookedModel, chains: Chains) -> None:
    found: Any = probes(model, chains)
    assert (found["accuracy"] > found["majority"] + 0.2).any()
    # Nothing of the problem stands at the thought's own slot before it is made: bot's embedding.
    start = found[(found["place"] == "bot") & (found["layer"] == -1)]
    assert (start["accuracy"] < 0.35).all()


def test_necessary_is_never_said_of_what_the_control_can_do() -> None:
    for control in np.linspace(0, 1, 101):
        for accuracy in (0.3, 0.9, 0.99, 1.0):
            said = necessity(0.1, accuracy, float(control))
            close = accuracy - control <= 0.02
            assert ("necessary" in said) == (control <= accuracy / 2), (control, accuracy)
            assert ("can be done without" in said) == close
            assert not ("necessary" in said and close)
    assert "necessary" not in necessity(0.1, 1.0, None)
    assert necessity(0.99, 1.0, 0.0).startswith("not used")


@pytest.mark.parametrize("mode", ["rerolled", "frozen"])
def test_attribution_is_checked_by_patches(model: HookedModel, mode: Any) -> None:
    """Exact effects of whole sites are those of patching; first-order ones have the gradient's
    sign where it matters, thoughts rerolled as well as frozen."""
    some = TASK.pairs(model, contrast="later", n=4)
    sites = [Site(0, "mlp_out"), Site(1, "attn_out")]
    with model.thinking(mode):
        found = attribute(
            model, TASK, pairs=some, sites=sites, method="exact", audit_pairs=0, progress=False
        )
        assert found.record["thoughts"] == mode
        for site in sites:
            swept = patch(
                model, TASK, pairs=some, site=site.kind, layers=[site.layer], progress=False
            )
            mine: Any = found.scores[found.scores["site"].astype(str) == str(site)]
            for _, row in mine.iterrows():
                same = (swept.scores["pair"] == row["pair"]) & (
                    swept.scores["position"] == row["position"]
                )
                at = swept.scores[same].iloc[0]
                start = found.record["logit_difference_corrupted"][row["pair"]]
                assert abs(row["effect"] - (at["logit_difference"] - start)) < 1e-4


def test_saes_on_thoughts_end_to_end(model: HookedModel, tmp_path: Path) -> None:
    """Trained on the task's texts from the command line, then attributed, then a circuit."""
    from circuits.cli.running import run_app

    words = ["train", "--task", "gsm8k_thoughts", "--layers", "0", "--num-tokens", "30000"]
    words += ["--width", "128", "--sparsity", "16", "--batch-size", "512", "--heldout", "0.1"]
    words += [
        "--batch-size-extract",
        "64",
        "--cache-dir",
        str(tmp_path / "a"),
        "--save-dir",
        str(tmp_path / "s"),
    ]
    with pytest.raises(SystemExit) as ended:
        run_app(app, [*words, "--ce-tokens", "2000"])
    assert ended.value.code == 0
    saes = load_saes(str(tmp_path / "s" / "best"), model)
    some = TASK.pairs(model, contrast="later", n=6)
    with pytest.raises(CircuitError, match="drawn=0"):
        circuit(model, TASK, saes=saes, pairs=some, summed=True, progress=False)
    found = circuit(
        model, TASK, saes=saes, pairs=some, n_eval=4, drawn=40, sizes=[0.5, 1.0], progress=False
    )
    assert found.record["thoughts"] == found.record["edges"]["thoughts"] == "rerolled"
    # There is one site: all edges between nodes go through thoughts, to later ones.
    nodes = [one.node for one in found.circuit.nodes]
    ends = [(nodes[e.source], nodes[e.target]) for e in found.circuit.edges if e.target is not None]
    assert ends and all(a.site == b.site and a.position < b.position for a, b in ends)  # type: ignore[operator]
    # Wired by all of them, they are worth what they are unwired.
    *_, every, nodes_alone = found.edge_curve()["value"]
    assert every == pytest.approx(nodes_alone, abs=1e-3)
    folder = found.save(tmp_path / "run")
    assert Circuit.load(folder).edges == found.circuit.edges
    assert "rerolled" in (folder / "graph.html").read_text()
    positions = {one.node.position for one in found.circuit.nodes}
    assert positions & {some.positions[0][f"t{i}"] for i in range(1, 7)}
    with model.thinking("frozen"):
        wired = circuit(
            model, TASK, saes=saes, pairs=some, n_eval=4, drawn=6, sizes=[0.5, 1.0], progress=False
        )
    assert wired.record["thoughts"] == "frozen" and len(wired.circuit.edges)


def test_a_thought_needs_something_before_it(model: HookedModel) -> None:
    thoughts = model.thoughts
    assert isinstance(thoughts, Thoughts)
    tokens = torch.tensor([[thoughts.slot, 5, 6]])
    with pytest.raises(Exception, match="begins with a thought"):
        model.run(tokens)
    mixed = torch.tensor([[5, thoughts.slot, 6], [5, 6, thoughts.slot]])
    with pytest.raises(Exception, match="different positions"):
        model.run(mixed)
    found = model.activations(mixed, [Site(0, "resid_pre")])[Site(0, "resid_pre")]
    for i in range(2):
        one = model.activations(mixed[i : i + 1], [Site(0, "resid_pre")])[Site(0, "resid_pre")]
        assert (found[i] - one[0]).abs().max() < 1e-5


@pytest.mark.parametrize("steps", [2, 3, None])
def test_pairs_of_the_larger_model(steps: int | None) -> None:
    """As many steps as are asked for, by default the most, all of one length."""
    larger = TASK.load("embedded/large0")
    n_steps = steps or 4
    found = TASK.pairs(larger, contrast="null", n=8, steps=steps)
    assert set(found.templates) == {f"{n_steps} steps, operand {n_steps}"}
    assert len(list(found.groups())) == 1
    swaps: Any = whole_thoughts(larger, found)
    assert (swaps[swaps["place"] != "operands"]["flips"] <= 0.05).all()


def test_what_the_task_refuses(model: HookedModel) -> None:
    with pytest.raises(TaskError, match="problems of 3 to 3"):
        TASK.pairs(model, steps=4)
    with pytest.raises(TaskError, match="later needs 3"):
        TASK.pairs(TASK.load("embedded/large0"), contrast="later", steps=2)
    with pytest.raises(TaskError, match="has the contrasts first"):
        TASK.pairs(model, contrast="words")
    with pytest.raises(TaskError, match="prepend_bos"):
        TASK.pairs(model, prepend_bos=True)
    with pytest.raises(TaskError, match="at least 1"):
        TASK.pairs(model, n=0)


def test_the_study_is_saved_and_read(model: HookedModel, tmp_path: Path) -> None:
    card = read_card(embedded_folder(f"embedded/{CONTROL}"))
    found = study(model, TASK, n_pairs=6, n_problems=60, control=card, progress=False)
    folder = found.save(tmp_path / "run")
    shown = CliRunner().invoke(app, ["show", str(folder)])
    assert found.record["verdict"] in " ".join(shown.output.split())
    again = ThoughtStudy.load(folder)
    assert again.record["verdict"] == found.record["verdict"]
    for name, table in found.tables.items():
        assert again.tables[name].dtypes.equals(table.dtypes)
        for column in table.columns:
            mine, its = table[column].tolist(), again.tables[name][column].tolist()
            numbers = table[column].dtype.kind == "f"
            assert its == (pytest.approx(mine, nan_ok=True) if numbers else mine)
    page = (folder / "thoughts.html").read_text()
    assert "Legible is not the same as used" in page and "share mediated" in page
    assert found.carrier()["null_flips"] <= 0.05
