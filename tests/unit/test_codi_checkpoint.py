"""CODI checkpoints in the published layout against plain Hugging Face models with LoRA unmerged."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from circuits.task import Inputs, Recurrence
from tasks.gsm8k_thoughts.checkpoint import CheckpointError, load_codi
from tasks.gsm8k_thoughts.checkpoint import load as loading
from tests import tiny
from tests.codi import ALPHA, QUESTION, RANK, WIDTH, WORDS, Made, load, write


@pytest.fixture
def made() -> Made:
    return Made("gpt2")


@pytest.fixture
def base(made: Made, tmp_path: Path) -> Path:
    return made.base(tmp_path / "base")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(("kind", "tied"), [("gpt2", True), ("llama", True), ("llama", False)])
def test_logits_are_those_of_the_unmerged_model(
    kind: str, tied: bool, name: str, tmp_path: Path
) -> None:
    made = Made(kind, tied=tied)
    folder = write(made.tensors(), tmp_path / "codi", name)
    (folder / "optimizer.pt").write_bytes(b"never opened")
    (folder / "training_args.bin").write_bytes(b"never opened")
    loaded = load(folder, made.base(tmp_path / "base"))
    tokens = loaded.tokens
    layout = tokens.lay_out(QUESTION, answer=(11,))
    after = [*tokens.after, *tokens.answer_prefix_ids, 11]
    logits, thoughts = made.by_hand([*QUESTION, *tokens.before], after)
    assert len(layout.slots) == tokens.thoughts == 6

    given = Inputs(
        torch.tensor([layout.tokens]),
        layout.slots,
        thoughts,
        Recurrence(layout.sources, lambda h: h),
    )
    found = loaded.model.run_all_positions(given)[:, layout.slots[-1] + 1 :]
    assert (found - logits).abs().max() < 1e-4
    assert logits.std() > 0.1  # and not all the same

    # Each thought follows from those before it. (Rolled out anew, six rounds through a random model
    # make 1e-3 of a rounding of float32.)
    model = loaded.model.module.original_model
    embeddings = model.get_input_embeddings()(torch.tensor([layout.tokens])).detach().clone()
    embeddings[:, list(layout.slots)] = thoughts
    states = model(inputs_embeds=embeddings, output_hidden_states=True).hidden_states[-1]
    again = loaded.projection(states[:, list(layout.sources)])
    assert (again - thoughts).abs().max() < 1e-4


def test_without_the_lora_the_logits_are_others(made: Made, base: Path, tmp_path: Path) -> None:
    """The comparison above would see a LoRA that is left out or scaled otherwise."""
    folder = write(made.tensors(), tmp_path / "codi")
    right, wrong = load(folder, base), load(folder, base, lora_alpha=2 * ALPHA)
    tokens = torch.tensor([QUESTION])
    assert (right.model.run(tokens) - wrong.model.run(tokens)).abs().max() > 0.01
    assert right.model.sha256 != wrong.model.sha256


def test_tokens_are_named(made: Made, base: Path, tmp_path: Path) -> None:
    loaded = load(write(made.tensors(), tmp_path / "codi"), base)
    tokens, tokenizer = loaded.tokens, loaded.model.tokenizer
    assert (tokens.pad, tokens.bot, tokens.eot) == (97, 98, 99)
    assert tokenizer.decode([tokens.bot]) == "<|bot|>"
    assert tokenizer.decode([tokens.eot]) == "<|eot|>"
    assert tokenizer("the <|bot|> cat")["input_ids"][1] == tokens.bot
    assert tokens.before == (98,) and tokens.after == (99,)
    assert tokenizer.decode(tokens.answer_prefix_ids) == tokens.answer_prefix == "The answer is:"
    assert loaded.model.name == "codi"
    assert not any(p.requires_grad for p in loaded.projection.parameters())


def test_layout(made: Made, base: Path, tmp_path: Path) -> None:
    tokens = load(write(made.tensors(), tmp_path / "codi"), base, thoughts=3).tokens
    layout = tokens.lay_out((5, 6), prefix=False)
    assert layout.tokens == (5, 6, 98, 97, 97, 97, 99)
    assert layout.slots == (3, 4, 5) and layout.sources == (2, 3, 4)


def test_end_of_text_around_the_thoughts(made: Made, base: Path, tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer(*WORDS)
    tokenizer.add_special_tokens({"eos_token": "dog"})
    tokenizer.save_pretrained(base)
    eos = tokenizer.eos_token_id
    tokens = load(write(made.tensors(), tmp_path / "codi"), base, remove_eos=False).tokens
    assert tokens.before == (eos, 98) and tokens.after == (99, eos)


def test_the_digest_covers_the_projection(made: Made, base: Path, tmp_path: Path) -> None:
    first = load(write(made.tensors(), tmp_path / "a"), base).model.sha256
    made.prj["3.bias"] += 1e-3
    assert load(write(made.tensors(), tmp_path / "b"), base).model.sha256 != first


def test_a_tied_embedding_may_be_saved_once(made: Made, base: Path, tmp_path: Path) -> None:
    tensors = made.tensors()
    whole = load(write(tensors, tmp_path / "a"), base)
    for i, key in enumerate(("lm_head.weight", "transformer.wte.weight")):
        less = {k: v for k, v in tensors.items() if k != f"codi.base_model.model.{key}"}
        assert load(write(less, tmp_path / f"b{i}"), base).model.sha256 == whole.model.sha256
    tensors["codi.base_model.model.lm_head.weight"] += 1
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differ"):
        load(write(tensors, tmp_path / "c"), base)


def test_modules_to_save_replace_their_originals(made: Made, base: Path, tmp_path: Path) -> None:
    tensors = made.tensors()
    whole = load(write(tensors, tmp_path / "a"), base)
    name = "codi.base_model.model.transformer.wte"
    trained = tensors.pop(f"{name}.weight")
    tensors[f"{name}.modules_to_save.default.weight"] = trained
    tensors[f"{name}.original_module.weight"] = torch.zeros_like(trained)
    assert load(write(tensors, tmp_path / "b"), base).model.sha256 == whole.model.sha256


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_shards(made: Made, base: Path, tmp_path: Path, ending: str) -> None:
    tensors = made.tensors()
    whole = load(write(tensors, tmp_path / "a"), base)
    folder, keys = tmp_path / "b", sorted(tensors)
    stem = "model" if ending == ".safetensors" else "pytorch_model"
    places = {k: f"{stem}-0000{1 + i % 2}-of-00002{ending}" for i, k in enumerate(keys)}
    for shard in set(places.values()):
        write({k: tensors[k] for k in keys if places[k] == shard}, folder, shard)
    index = folder / f"{stem}{ending}.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert load(folder, base).model.sha256 == whole.model.sha256

    # A tensor in both shards; a shard outside of the folder; one that is not there.
    first, second = sorted(set(places.values()))
    doubled = {k: tensors[k] for k in keys if places[k] == second} | {keys[0]: tensors[keys[0]]}
    write(doubled, folder, second)
    with pytest.raises(CheckpointError, match="doubled"):
        load(folder, base)
    index.write_text(json.dumps({"weight_map": {**places, keys[0]: f"../{first}"}}))
    with pytest.raises(CheckpointError, match="beside it"):
        load(folder, base)
    (folder / second).unlink()
    index.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(CheckpointError, match="not there"):
        load(folder, base)


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.path, "code ran"))


def test_pickles_that_run_code_are_refused(made: Made, base: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    folder = write({**made.tensors(), "x": _Evil(trace)}, tmp_path / "a", "pytorch_model.bin")  # type: ignore[dict-item]
    with pytest.raises(CheckpointError, match="more than tensors"):
        load(folder, base)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Evil(trace), protocol=2))
    with pytest.raises(CheckpointError, match="more than tensors"):
        load(folder, base)
    (folder / "pytorch_model.bin").rename(folder / "model.pt")
    with pytest.raises(CheckpointError, match=r"model\.pt: other pickles are not read"):
        load(folder, base)
    assert not trace.exists()


def test_other_objects_are_refused(made: Made, base: Path, tmp_path: Path) -> None:
    cases: list[tuple[Any, str]] = [
        ({**made.tensors(), "epoch": 3}, r"epoch \(int\)"),
        ({"state_dict": made.tensors()}, r"state_dict \(dict\)"),
        ([1, 2], "a list"),
        ({**made.tensors(), "prj.1.bias": torch.arange(WIDTH)}, r"prj\.1\.bias is of type"),
        ({**made.tensors(), "prj.1.bias": torch.full((WIDTH,), torch.nan)}, "not numbers"),
    ]
    for i, (content, message) in enumerate(cases):
        with pytest.raises(CheckpointError, match=message):
            load(write(content, tmp_path / f"{i}", "pytorch_model.bin"), base)
    (tmp_path / "0" / "model.safetensors").write_bytes(b"no such thing")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load(tmp_path / "0", base)


_MODEL = "codi.base_model.model."
_LAYER = f"{_MODEL}transformer.h.1.mlp.c_fc"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prj.3.weight": None}, r"missing prj\.3\.weight"),
        ({"prj.ln.weight": None, "prj.ln.bias": None}, "prj_no_ln"),
        ({"prj.5.weight": torch.ones(2)}, r"unexpected prj\.5\.weight"),
        ({"decoder.weight": torch.ones(2)}, r"unexpected keys: decoder\.weight"),
        ({f"{_MODEL}transformer.h.9.ln_1.bias": torch.ones(2)}, r"unexpected .*h\.9\.ln_1\.bias"),
        ({f"{_MODEL}transformer.ln_f.bias": None}, r"missing .*ln_f\.bias"),
        ({f"{_LAYER}.lora_A.default.weight": None}, r"missing keys: .*h\.1\.mlp\.c_fc\.lora_A"),
        ({f"{_LAYER}.lora_B.default.weight": None}, r"missing keys: .*h\.1\.mlp\.c_fc\.lora_B"),
        ({f"{_LAYER}.base_layer.weight": None}, r"missing keys: .*c_fc\.base_layer\.weight"),
        ({f"{_LAYER}.base_layer.bias": None}, r"missing .*h\.1\.mlp\.c_fc\.bias"),
        ({f"{_LAYER}.weight": torch.ones(2)}, "is in the checkpoint twice"),
        ({f"{_LAYER}.lora_A.other.weight": torch.ones(2)}, r"unexpected .*lora_A\.other"),
        ({f"{_LAYER}.lora_A.default.weight": torch.ones(5, 32)}, "rank 4 was expected"),
        ({f"{_LAYER}.lora_B.default.weight": torch.ones(64, 5)}, r"\(128, 4\) was expected"),
        ({f"{_LAYER}.base_layer.weight": torch.ones(64, 32)}, r"\(32, 128\) was expected"),
        ({"prj.1.weight": torch.ones(WIDTH, 31)}, r"prj\.1\.weight has the shape"),
        ({f"{_MODEL}transformer.ln_f.bias": torch.ones(31)}, r"ln_f\.bias has the shape"),
    ],
)
def test_keys_are_accounted_for(
    made: Made, base: Path, tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    changed = {**made.tensors(), **change}
    kept = {k: v for k, v in changed.items() if v is not None}
    with pytest.raises(CheckpointError, match=message):
        load(write(kept, tmp_path / "codi"), base)


def test_the_base_must_fit(made: Made, base: Path, tmp_path: Path) -> None:
    folder = write(made.tensors(), tmp_path / "codi")
    with pytest.raises(CheckpointError, match="rank 128 was expected"):
        load(folder, base, lora_rank=128)
    with pytest.raises(CheckpointError, match="both are positive"):
        load(folder, base, lora_rank=0)
    with pytest.raises(CheckpointError, match="give base="):
        load_codi(folder)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_codi(folder, base=tmp_path / "nowhere")
    made.config["vocab_size"] = 90
    with pytest.raises(CheckpointError, match="100 rows, but the base model's vocabulary of 90"):
        load(folder, made.base(tmp_path / "other"))


def test_configuration_in_the_folder_itself(made: Made, base: Path, tmp_path: Path) -> None:
    folder = write(made.tensors(), tmp_path / "codi")
    with_base = load(folder, base)
    made.base(folder)
    alone = load_codi(folder, lora_alpha=ALPHA, lora_rank=RANK, device="cpu")
    assert alone.model.sha256 == with_base.model.sha256


def test_without_a_network(base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to the hub.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match="could not be fetched from the hub: no route"):
        load_codi("zen-E/CODI-gpt2", base=base)
    with pytest.raises(CheckpointError, match="no folder that is here"):
        load_codi(tmp_path / "nowhere", base=base)
    monkeypatch.setitem(loading.PUBLISHED, "zen-E/CODI-gpt2", str(tmp_path / "empty"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"base model .* could not be loaded"):
        load_codi("zen-E/CODI-gpt2")


def test_merging_is_done_before_rounding(made: Made, base: Path, tmp_path: Path) -> None:
    tensors = made.tensors()
    layer = "transformer.h.0.mlp.c_fc"
    down, up = made.lora[layer]
    merged = tensors[f"{_MODEL}{layer}.base_layer.weight"] + ALPHA / RANK * (down.T @ up.T)
    half = load(write(tensors, tmp_path / "codi"), base, dtype="bfloat16")
    weights = [p for p in half.model.module.parameters() if p.shape == merged.shape]
    assert any(torch.equal(w, merged.bfloat16()) for w in weights)
    assert next(half.projection.parameters()).dtype == torch.bfloat16
