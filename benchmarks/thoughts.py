"""Continuous thoughts: extraction against bare generation, sweeps, prediction; the seeds' thoughts.

    python -m benchmarks.thoughts [speed] [predict] [seeds]

The embedded CODI. speed: 18 vectors a problem (three sites, six thoughts) kept while 256 problems
are answered, against answering them, and against the plain Hugging Face model doing so with its
own cache; a sweep over layers and positions with thoughts rerolled, against seven whole forwards a
cell (one a thought and one for the answer), all pairs of a cell in one batch, as one would write
it first. predict: the whole of `circuits predict` on 1,000 problems, with SAEs fitted in the folds
and with attention between the thoughts as well, and of the likeliest answers to larger problems
(`embedded/large0`), whose errors are the model's own. seeds: what the thoughts of each seed carry,
and the controls.

What was predicted before the first measurement: extraction keeps 21 small tensors of seven pieces
and copies 18 vectors a problem: 0.95 to 1 of bare generation. TransformerLens' hooks cost a
quarter of a small model's time: 0.75 of the plain model. The sweep: a cell computes 12 of 29
positions on average, and whole forwards 29 + 28 + ... + 23 of them, 178: 15x in tokens; small
tensors cost what their calls cost, 8 pieces against 7 forwards a cell, but ours take all cells of
a position in one batch: at least 5x. predict: 100 s, of which nine tenths are the five
estimators' nested folds.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.common import report, seconds
from circuits import load_task
from circuits.models.hooked import HookedModel
from circuits.patch import patch
from circuits.predict import SaeFit, predict
from circuits.predict.extract import task_vectors
from circuits.sites import Site
from tasks.gsm8k_thoughts.answered import thought_vectors
from tasks.gsm8k_thoughts.chains import draw_chains
from tasks.gsm8k_thoughts.model import LARGE, SEEDS, control_of, embedded_folder, read_card
from tasks.gsm8k_thoughts.pairs import prompts_of
from tasks.gsm8k_thoughts.study.result import study

TASK: Any = load_task("gsm8k_thoughts")
SITES = [Site(0, "resid_pre"), Site(0, "resid_post"), Site(1, "resid_post")]
PROBLEMS, ROUNDS, PAIRS, PREDICTED = 256, 15, 12, 1000
LATENTS, ACTIVE = 256, 16  # of SAEs that are fitted in the folds


@cache
def setting() -> tuple[HookedModel, Tensor, Any]:
    """The model, prompts, and the plain model of the same weights."""
    model: HookedModel = TASK.load()
    thoughts: Any = model.thoughts
    numbers, steps = thoughts.vocabulary.n_numbers, thoughts.steps[1]
    chains = draw_chains(np.random.default_rng(0), PROBLEMS, steps, numbers, "held_out")
    plain = AutoModelForCausalLM.from_pretrained(embedded_folder(), dtype=torch.float32).eval()
    return model, prompts_of(model, chains), plain


def bare() -> Tensor:
    """Answers, and nothing kept."""
    model, prompts, _ = setting()
    return model.run(prompts)


def extraction() -> Any:
    """Answers and the vectors at every thought."""
    model, prompts, _ = setting()
    slots = model.thoughts.inputs(prompts).slots  # type: ignore[union-attr]
    logits, values = model.cache(prompts, SITES, slots[0])
    return logits, torch.stack([values[site][:, : len(slots)] for site in SITES], 1)


@torch.no_grad()
def hugging_face() -> Tensor:
    """The same without TransformerLens, stepped with the library's own cache."""
    model, prompts, plain = setting()
    step: Any = model.thoughts.step  # type: ignore[union-attr]
    slots = model.thoughts.inputs(prompts).slots  # type: ignore[union-attr]
    cached = DynamicCache()
    out = plain.transformer(input_ids=prompts[:, : slots[0]], past_key_values=cached)
    for _ in slots:
        x = step(out.last_hidden_state[:, -1])[:, None]
        out = plain.transformer(inputs_embeds=x, past_key_values=cached, use_cache=True)
    out = plain(input_ids=prompts[:, slots[-1] + 1 :], past_key_values=cached, logits_to_keep=1)
    return out.logits[:, -1]


def speed() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """In turns."""
    apart = float((bare() - hugging_face()).abs().max())
    apart = max(apart, float((extraction()[0] - bare()).abs().max()))
    times: dict[str, list[float]] = {"bare": [], "extraction": [], "hugging_face": []}
    works: dict[str, Callable[[], Any]] = {
        "bare": bare,
        "extraction": extraction,
        "hugging_face": hugging_face,
    }
    for _ in range(ROUNDS):
        for name, work in works.items():
            times[name].append(seconds(work))
    pairs = TASK.pairs(setting()[0], contrast="first", n=PAIRS)
    ours, naive, difference = [], [], 0.0
    for _ in range(3):
        started = time.perf_counter()
        found = patch(setting()[0], pairs, progress=False)
        ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        mine = naive_sweep(pairs)
        naive.append(time.perf_counter() - started)
        wanted = found.scores["logit_difference"].to_numpy().reshape(mine.shape)
        difference = max(difference, float(np.abs(mine - wanted).max()))
    rate = PROBLEMS / statistics.median(times["extraction"])
    rows: list[dict[str, Any]] = [
        {"what": "extraction of 18 vectors a problem", "measured": rate, "unit": "problems/s"},
        {
            "what": "against bare generation",
            "measured": _ratio(times["bare"], times["extraction"]),
            "unit": "x",
            "bar": ">= 0.9",
        },
        {
            "what": "against the plain Hugging Face model",
            "measured": _ratio(times["hugging_face"], times["extraction"]),
            "unit": "x",
        },
        {"what": "largest difference of logits", "measured": apart, "unit": "logits"},
        {"what": f"sweep of {PAIRS} pairs, thoughts rerolled", "measured": min(ours), "unit": "s"},
        {
            "what": "against seven whole forwards a cell",
            "measured": _ratio(naive, ours),
            "unit": "x",
        },
        {"what": "largest difference of sweeps", "measured": difference, "unit": "logits"},
    ]
    return rows, {"speed": times, "sweep": {"ours_s": ours, "naive_s": naive}}


def _ratio(others: list[float], ours: list[float]) -> float:
    return statistics.median(o / m for o, m in zip(others, ours, strict=True))


@torch.no_grad()
def naive_sweep(pairs: Any) -> np.ndarray:
    """[pair, cell], every layer and position patched at `resid_pre`, without a cache."""
    model, _, plain = setting()
    step: Any = model.thoughts.step  # type: ignore[union-attr]
    [group] = pairs.groups()
    slots = model.thoughts.inputs(group.clean).slots  # type: ignore[union-attr]
    values = model.cache(group.clean, [Site(layer, "resid_pre") for layer in range(2)])[1]
    blocks = plain.transformer.h
    cells = []
    for layer in range(2):
        for position in range(group.clean.shape[1]):
            put = values[Site(layer, "resid_pre")][:, position]

            def change(module: Any, args: Any, put: Tensor = put, at: int = position) -> Any:
                if args[0].shape[1] <= at:
                    return None
                x = args[0].clone()
                x[:, at] = put
                return (x, *args[1:])

            handle = blocks[layer].register_forward_pre_hook(change)
            try:
                x = plain.transformer.wte(group.corrupted)
                for slot in slots:
                    hidden = plain.transformer(inputs_embeds=x[:, :slot]).last_hidden_state[:, -1]
                    x = torch.cat([x[:, :slot], step(hidden)[:, None], x[:, slot + 1 :]], 1)
                logits = plain(inputs_embeds=x, logits_to_keep=1).logits[:, -1]
            finally:
                handle.remove()
            rows = torch.arange(len(logits))
            cells.append(logits[rows, group.answer] - logits[rows, group.foil])
    return torch.stack(cells, 1).numpy()


def prediction() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Records, vectors, estimators, baselines, audit and figures of 1,000 problems."""
    model: HookedModel = TASK.load()
    started = time.perf_counter()
    records = TASK.answered(model, n=PREDICTED)
    vectors = task_vectors(TASK, model, records, SITES)
    extracted = time.perf_counter() - started
    alone = seconds(partial(thought_vectors, model, records, SITES))
    found = predict(records, vectors, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        found.save(Path(folder) / "run")
    whole = time.perf_counter() - started
    started = time.perf_counter()
    latents = predict(records, vectors, saes=SaeFit(LATENTS, ACTIVE), progress=False)
    fitted = time.perf_counter() - started
    looks = task_vectors(TASK, model, records, SITES, attention=True)
    attention = predict(records, looks, progress=False)
    larger: HookedModel = TASK.load(f"embedded/{LARGE[0]}")
    own = TASK.answered(larger, n=PREDICTED, temperature=0.0)
    likeliest = predict(own, task_vectors(TASK, larger, own, SITES), progress=False)
    share = float(np.mean([not record.correct for record in own]))
    others = {
        "SAEs fitted in the folds": latents,
        "attention between thoughts": attention,
        f"likeliest answers of {LARGE[0]} ({share:.0%} wrong)": likeliest,
    }
    about = found.record["targets"]["wrong"]["headline"]
    wrong = float(np.mean([not record.correct for record in records]))
    rows: list[dict[str, Any]] = [
        {"what": f"prediction pipeline, {PREDICTED} problems", "measured": whole, "unit": "s"},
        {"what": "of it problems and vectors", "measured": extracted, "unit": "s"},
        {"what": "wrong answers", "measured": wrong, "unit": ""},
        {"what": "AUC of the chosen estimator", "measured": about["auc"], "unit": ""},
        {"what": "gain over the best baseline", "measured": about["gain"], "unit": ""},
        {"what": "the same with SAEs fitted in the folds", "measured": fitted, "unit": "s"},
    ]
    for name, one in others.items():
        about = one.record["targets"]["wrong"]["headline"]
        rows.append({"what": f"{name}: AUC of the chosen", "measured": about["auc"], "unit": ""})
        rows.append({"what": f"{name}: gain", "measured": about["gain"], "unit": ""})
    table = found.table().to_dict("records")
    details = {"headline": found.headline(), "verdict": found.verdict(), "table": table}
    more = {
        name: {"verdict": one.verdict(), "table": one.table().to_dict("records")}
        for name, one in others.items()
    }
    details |= {"audit": found.audit(), "vectors_s": alone, "others": more}
    return rows, {"predict": details}


def seeds() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The study of every seed; see `tasks.gsm8k_thoughts.study`."""
    rows: list[dict[str, Any]] = []
    details: dict[str, Any] = {}
    controls: dict[str, list[float]] = {}
    for seed in (*SEEDS, *LARGE):
        name = embedded_folder(control_of(f"embedded/{seed}")).name
        control = read_card(embedded_folder(f"embedded/{name}"))
        if name not in controls:
            alone = controls[name] = control["accuracy_after_thoughts"]
            rows.append({"what": f"{name}, accuracy", "measured": alone[0], "unit": ""})
        model = TASK.load(f"embedded/{seed}")
        found = study(model, TASK, n_pairs=200, n_problems=1000, control=control, progress=False)
        best, swaps = found.carrier(), found.tables["swaps"]
        means: Any = found.tables["mediation"].set_index("family")["mediated"]
        together: Any = swaps[
            (swaps["place"] == "all") & (swaps["thoughts"] == "rerolled")
        ].set_index("family")["recovery"]
        lens: Any = found.tables["lens"]
        top = lens[(lens["reading"] == "numbers") & (lens["layer"] == lens["layer"].max())]
        card = read_card(embedded_folder(f"embedded/{seed}"))
        accuracy = card["accuracy_after_thoughts"]
        measured = {
            "accuracy, six thoughts": accuracy[-1],
            "accuracy, none": accuracy[0],
            f"recovery of {best['place']} alone, later": best["recovery"],
            "recovery of all thoughts, later": together["later"],
            "mediated share, later": means["later"],
            "mediated share, null": means["null"],
            "flips of the strongest thought, null": best["null_flips"],
        }
        rows += [{"what": f"{seed}: {k}", "measured": float(v)} for k, v in measured.items()]
        tables = {name: table.to_dict("records") for name, table in found.tables.items()}
        legible = dict(zip(top["place"], top["probability"], strict=True))
        verdict = found.record["verdict"]
        details[seed] = {"numbers_under_the_lens": legible, "verdict": verdict, "tables": tables}
    return rows, {"seeds": details, "controls": controls}


_PARTS = {"speed": speed, "predict": prediction, "seeds": seeds}


def main(names: list[str]) -> None:
    """Some parts, or all of them."""
    rows: list[dict[str, Any]] = []
    details: dict[str, Any] = {}
    for name in names or _PARTS:
        found, more = _PARTS[name]()
        rows += found
        details |= more
    report(__file__, rows, details)


if __name__ == "__main__":
    main(sys.argv[1:])
