"""Chains of steps, and the small CODI that is trained on them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from circuits.task import TaskError
from tasks.gsm8k_thoughts.chains import PLUS, TIMES, ChainError, Chains, Vocabulary, draw_chains
from tasks.gsm8k_thoughts.model import load_thinking, read_card, thoughts_of
from tasks.gsm8k_thoughts.pairs import prompts_of
from tasks.gsm8k_thoughts.train import (
    Options,
    ThoughtTrainingError,
    Training,
    held_out_problems,
    main,
    train,
)

SMALL = Options(numbers=12, steps=(2, 3), d_model=16, layers=2, heads=2, examples=64, batch=8)


def drawn(n: int, n_steps: int, n_numbers: int = 20, split: str = "train", seed: int = 0) -> Chains:
    side = "held_out" if split == "held_out" else "train"
    return draw_chains(np.random.default_rng(seed), n, n_steps, n_numbers, side)


@pytest.mark.parametrize(("n_steps", "n_numbers"), [(2, 20), (3, 20), (4, 100)])
def test_questions_say_what_the_answer_is_of(n_steps: int, n_numbers: int) -> None:
    """The text is read again, as a person would."""
    chains, vocabulary = drawn(300, n_steps, n_numbers), Vocabulary(n_numbers)
    tokenizer = vocabulary.tokenizer()
    signs = set()
    for i, ids in enumerate(vocabulary.questions(chains)):
        text = tokenizer.decode(ids)
        assert tokenizer(text)["input_ids"] == ids.tolist()
        *facts, asked = text.split(" , ")
        known: dict[str, int] = {}
        values = []
        for fact in reversed(facts):
            name, _, start, sign, operand = fact.split()
            signs.add(sign)
            first = known[start] if start.isalpha() else int(start)
            known[name] = {"+": first + int(operand), "-": first - int(operand)}.get(
                sign, first * int(operand)
            )
            values.append(known[name])
        assert asked == f"{facts[0][0]} ?"
        assert values == chains.values[i].tolist()
        assert min(values) >= 0 and max(values) < n_numbers
        assert known[asked[0]] == chains.answers[i]
        shown = tokenizer.decode(vocabulary.worked(chains)[i]).split(" , ")
        assert [int(v.strip(" ,")) for v in shown] == values[:-1]
    assert signs == {"+", "-", "*"}


def test_no_problem_is_on_both_sides() -> None:
    train_keys = set(drawn(4000, 3).keys())
    held = drawn(4000, 3, split="held_out", seed=1)
    assert not train_keys & set(held.keys())
    assert held.held_out().all()
    # Whatever the letters are.
    assert replace(held, letters=held.letters[:, ::-1].copy()).held_out().all()
    assert 0.04 < draw_share() < 0.09


def draw_share() -> float:
    from tasks.gsm8k_thoughts.chains import _draw  # pyright: ignore

    return float(_draw(np.random.default_rng(3), 20_000, 3, 20).held_out().mean())


def test_chains_that_cannot_be() -> None:
    with pytest.raises(ChainError, match="2 to 8"):
        drawn(1, 9)
    with pytest.raises(ChainError, match="at least the numbers"):
        drawn(1, 2, 3)


def test_losses_are_those_of_whole_forwards(tmp_path: Path) -> None:
    """Question and teacher's solution read in one go, thoughts from forwards without a cache."""
    training = Training(SMALL, tmp_path)
    student, vocabulary = training.student, training.student.vocabulary
    chains = SMALL.problems(3)
    found = student.losses(chains, 6)
    model = student.model
    embed = model.get_input_embeddings()
    questions = torch.from_numpy(vocabulary.questions(chains))
    bot, eot, answer = (
        torch.full((len(chains), 1), vocabulary.id(w)) for w in ("<bot>", "<eot>", "answer")
    )
    number = torch.from_numpy(vocabulary.number(chains.answers))[:, None]
    worked = torch.from_numpy(vocabulary.worked(chains))
    whole = torch.cat([questions, worked, answer, number], 1)
    start = questions.shape[1] - 1  # the end of the question foretells the first value
    out = model(whole[:, :-1], output_hidden_states=True)
    teacher = torch.nn.functional.cross_entropy(
        out.logits[:, start:].flatten(0, 1), whole[:, start + 1 :].flatten()
    )
    assert abs(float(found["teacher"].detach() - teacher.detach())) < 1e-5
    x = embed(torch.cat([questions, bot], 1))
    for _ in range(6):
        last = model(inputs_embeds=x, output_hidden_states=True).hidden_states[-1][:, -1]
        x = torch.cat([x, student.prj(last)[:, None]], 1)
    x = torch.cat([x, embed(torch.cat([eot, answer], 1))], 1)
    mine = model(inputs_embeds=x, output_hidden_states=True)
    wanted = torch.nn.functional.cross_entropy(mine.logits[:, -1], number[:, 0])
    assert abs(float((found["student"] - wanted).detach())) < 1e-5
    far = [
        torch.nn.functional.smooth_l1_loss(a[:, -1], b[:, -1]) / b[:, -1].std()
        for a, b in zip(mine.hidden_states[1:], out.hidden_states[1:], strict=True)
    ]
    assert abs(float((found["distance"] - torch.stack(far).mean()).detach())) < 1e-5


def test_the_teacher_is_not_pulled_to_the_student(tmp_path: Path) -> None:
    student = Training(SMALL, tmp_path).student
    chains = SMALL.problems(0)
    student.losses(chains, 6)["distance"].backward()
    # Only the student's way leads to the distance: the worked solution's numbers get no gradient
    # but through the question, which has every number of theirs or not.
    grads = student.prj[1].weight.grad
    assert grads is not None and float(grads.abs().max()) > 0
    gradient = student.model.get_input_embeddings().weight.grad
    alone = set(student.vocabulary.worked(chains).ravel()) - set(
        student.vocabulary.questions(chains).ravel()
    )
    # The embedding is the unembedding too, which the distance does not go through.
    assert alone and all(float(gradient[i].abs().max()) == 0 for i in alone)


def test_a_training_goes_on_where_it_was(tmp_path: Path) -> None:
    straight = Training(SMALL, tmp_path / "a")
    straight.run(progress=False)
    Training(SMALL, tmp_path / "b").run(until=3, progress=False)
    resumed = Training(SMALL, tmp_path / "b")
    assert resumed.update == 3
    resumed.run(progress=False)
    for a, b in zip(straight.student.parameters(), resumed.student.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ThoughtTrainingError, match="other options"):
        Training(replace(SMALL, lr=1e-3), tmp_path / "b")


def test_what_is_saved_is_what_was_trained(tmp_path: Path) -> None:
    """The loaded model, run as any other, gives the student's own logits."""
    card = train(SMALL, tmp_path, progress=False)
    assert json.loads((tmp_path / "card.json").read_text()) == json.loads(json.dumps(card))
    assert not list(tmp_path.glob("*state*")) and not (tmp_path / "progress.json").exists()
    model = load_thinking(tmp_path)
    training = Training(SMALL, tmp_path / "again")
    training.run(progress=False)
    training.folder.mkdir(exist_ok=True)
    training.export()  # rounds to the type that is saved
    for n_steps in (2, 3):
        chains = held_out_problems(SMALL, n_steps, 40)
        with torch.no_grad():
            questions = torch.from_numpy(training.student.vocabulary.questions(chains))
            logits, _ = training.student.answer(training.student.read(questions)[0], 6)
        assert (model.run(prompts_of(model, chains)) - logits).abs().max() < 1e-4
    assert len(card["accuracy_after_thoughts"]) == 7
    assert thoughts_of(model).steps == (2, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": (1, 3)}, "2 to 8"),
        ({"heads": 3}, "no multiple"),
        ({"numbers": 2}, "at least 4 numbers"),
        ({"precision": "int8"}, "float16 or float32"),
    ],
)
def test_options_that_cannot_be_trained_with(change: dict[str, object], message: str) -> None:
    with pytest.raises(ThoughtTrainingError, match=message):
        replace(SMALL, **change)  # type: ignore[arg-type]


def test_training_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--numbers", "12", "--steps", "2-3", "--d-model", "16", "--examples", "32"]
    options += ["--batch", "8", "--heads", "2", "--out", str(tmp_path / "m")]
    with pytest.raises(SystemExit) as ended:
        main(options)
    assert ended.value.code == 0
    assert "Accuracy after 0 to 6 thoughts" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(options)
    assert ended.value.code == 2
    assert "finished model" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "n"), "--steps", "two"])
    assert "a number, or two as 2-4" in capsys.readouterr().err


def test_folders_that_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "codi.json").write_text("{}")
    with pytest.raises(Exception, match="not a whole trained model"):
        load_thinking(tmp_path)
    with pytest.raises(TaskError, match=r"no card.json"):
        read_card(tmp_path)
    with pytest.raises(TaskError, match="embedded models are seed0"):
        load_thinking("embedded/seed9")


def test_signs_have_their_places() -> None:
    one = Chains(np.array([[3, 4, 2]]), np.array([[PLUS, TIMES]]), np.array([[0, 1]]))
    assert one.values.tolist() == [[7, 14]] and one.keys() == ["3+4*2"]
