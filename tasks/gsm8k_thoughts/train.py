"""Train a small CODI from scratch: `python -m tasks.gsm8k_thoughts.train --out DIR`.

Writes a folder that `--model DIR` takes: a Hugging Face GPT-2 with its tokenizer, the projection,
and a card with its accuracy after 0 to 6 thoughts on problems it was not trained on. An interrupted
training, started again, goes on where it was and ends in the same weights: the examples of a step
depend on seed and step alone.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from circuits.cli.running import interruptible, run_app
from circuits.errors import CircuitsError
from circuits.runs import versions
from tasks.gsm8k_thoughts.chains import LETTERS, Chains, Vocabulary, different, draw_chains
from tasks.gsm8k_thoughts.student import Student

CODI_FILE, PROJECTION_FILE, CARD = "codi.json", "projection.safetensors", "card.json"
N_TEST = 2000  # held-out problems of each number of steps that a card is measured on
_STATE, _PROGRESS = "state.safetensors", "progress.json"


class ThoughtTrainingError(CircuitsError):
    """Options that cannot be trained with, or a folder that holds something else."""


@dataclass(frozen=True)
class Options:
    """What is trained, and how.

    numbers: the problems' numbers lie below it. steps: fewest and most steps of a problem.
    thoughts: how many the student has; 0 is the control that must do without.
    examples: problems seen in all. precision: of the weights as they are saved.
    """

    numbers: int = 20
    steps: tuple[int, int] = (3, 3)
    d_model: int = 96
    layers: int = 2
    heads: int = 4
    thoughts: int = 6
    examples: int = 369_000
    batch: int = 128
    lr: float = 2e-3
    warmup: int = 200
    weight_decay: float = 0.01
    distillation: float = 1.0
    seed: int = 0
    precision: str = "float16"

    def __post_init__(self) -> None:
        low, high = self.steps
        if not 2 <= low <= high <= len(LETTERS):
            raise ThoughtTrainingError(f"steps {low} to {high}: 2 to {len(LETTERS)}, ascending.")
        if self.numbers < 4 or self.thoughts < 0 or self.batch < 1 or self.examples < self.batch:
            raise ThoughtTrainingError(
                "at least 4 numbers, 0 thoughts, a batch of 1 and as many examples are needed, got "
                f"{self.numbers}, {self.thoughts}, {self.batch}, {self.examples}."
            )
        if self.d_model % self.heads:
            raise ThoughtTrainingError(
                f"d_model {self.d_model} is no multiple of {self.heads} heads."
            )
        if self.precision not in ("float16", "float32"):
            raise ThoughtTrainingError(f"precision {self.precision!r}: float16 or float32.")

    @property
    def updates(self) -> int:
        """Optimiser steps."""
        return self.examples // self.batch

    @property
    def longest(self) -> int:
        """Most positions of a sequence: a question with its thoughts, or with its solution."""
        asked = 6 * self.steps[1] + 2
        return asked + max(self.thoughts, 2 * (self.steps[1] - 1)) + 3

    def problems(self, update: int) -> Chains:
        """The examples of one update; all of them have one number of steps."""
        rng = np.random.default_rng([self.seed, update])
        n_steps = int(rng.integers(self.steps[0], self.steps[1] + 1))
        return draw_chains(rng, self.batch, n_steps, self.numbers, "train")

    def rate(self, update: int) -> float:
        """The learning rate: a linear start, then half a cosine down to 0."""
        if update < self.warmup:
            return self.lr * (update + 1) / self.warmup
        done = (update - self.warmup) / max(1, self.updates - self.warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))


class Training:
    """A training that can be left and gone on with."""

    def __init__(self, options: Options, folder: Path) -> None:
        self.options, self.folder = options, folder
        torch.manual_seed(options.seed)
        self.student = Student(
            Vocabulary(options.numbers),
            options.d_model,
            options.layers,
            options.heads,
            options.longest,
        )
        self.optimizer = torch.optim.AdamW(
            self.student.parameters(), lr=options.lr, weight_decay=options.weight_decay
        )
        self.update, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []
        self._resume()

    def run(self, until: int | None = None, every: int = 500, progress: bool = True) -> None:
        """Train to update `until` (None: to the end), saving every `every` updates."""
        last = self.options.updates if until is None else min(until, self.options.updates)
        with tqdm(
            total=self.options.updates,
            initial=self.update,
            desc=f"training, {self.options.thoughts} thoughts, seed {self.options.seed}",
            unit="update",
            disable=not progress,
        ) as bar:
            while self.update < last:
                started = time.perf_counter()
                found = self._one()
                self.seconds += time.perf_counter() - started
                self.update += 1
                bar.update()
                if self.update % 50 == 0:
                    bar.set_postfix({k: f"{v:.3f}" for k, v in found.items()})
                if self.update % every == 0 or self.update == last:
                    self.history.append({"update": self.update, **found, **self._quick()})
                    self.save()

    def _one(self) -> dict[str, float]:
        options = self.options
        for group in self.optimizer.param_groups:
            group["lr"] = options.rate(self.update)
        losses = self.student.losses(options.problems(self.update), options.thoughts)
        total = losses["teacher"] + losses["student"] + options.distillation * losses["distance"]
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        return {name: float(value.detach()) for name, value in losses.items()}

    def _quick(self) -> dict[str, float]:
        low, high = self.options.steps
        right = [
            self.student.accuracy(held_out_problems(self.options, k, 250), self.options.thoughts)
            for k in range(low, high + 1)
        ]
        return {"accuracy": float(np.mean(right))}

    def save(self) -> None:
        """Tensors first, then the small file that makes them count."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {f"student.{k}": v.clone() for k, v in self.student.state_dict().items()}
        for i, moments in self.optimizer.state_dict()["state"].items():
            state |= {f"adam.{i}.{k}": v for k, v in moments.items()}
        name = f"{self.update}.{_STATE}"
        save_file({k: v.contiguous() for k, v in state.items()}, self.folder / name)
        words = {
            "options": asdict(self.options),
            "update": self.update,
            "seconds": self.seconds,
            "history": self.history,
            "state": name,
        }
        work = self.folder / f"{_PROGRESS}.partial"
        work.write_text(json.dumps(words))
        work.replace(self.folder / _PROGRESS)
        for old in self.folder.glob(f"*.{_STATE}"):
            if old.name != name:
                old.unlink()

    def _resume(self) -> None:
        path = self.folder / _PROGRESS
        if not path.is_file():
            return
        words = json.loads(path.read_text())
        if words["options"] != json.loads(json.dumps(asdict(self.options))):
            raise ThoughtTrainingError(
                f"{self.folder} holds a training with other options: give another --out, or "
                "remove it."
            )
        state = load_file(self.folder / words["state"])
        self.student.load_state_dict(
            {k.removeprefix("student."): v for k, v in state.items() if k.startswith("student.")}
        )
        adam = self.optimizer.state_dict()
        for name, value in state.items():
            if name.startswith("adam."):
                _, i, moment = name.split(".")
                adam["state"].setdefault(int(i), {})[moment] = value
        self.optimizer.load_state_dict(adam)
        self.update, self.seconds = words["update"], words["seconds"]
        self.history = words["history"]

    def export(self) -> dict[str, Any]:
        """Write model, projection and card; the card is of the weights as they are saved."""
        options, folder = self.options, self.folder
        kind = getattr(torch, options.precision)
        with torch.no_grad():
            for parameter in self.student.parameters():
                parameter.copy_(parameter.to(kind).float())
        self.student.model.to(kind).save_pretrained(folder)  # type: ignore[arg-type]
        self.student.model.float()
        self.student.vocabulary.tokenizer().save_pretrained(folder)
        parts = {k: v.to(kind).contiguous() for k, v in self.student.prj.state_dict().items()}
        save_file(parts, folder / PROJECTION_FILE)
        before, after = ["<bot>"], ["<eot>", "answer"]
        words = {"thoughts": options.thoughts, "before": before, "after": after}
        words |= {"numbers": options.numbers, "steps": options.steps}
        (folder / CODI_FILE).write_text(json.dumps(words, indent=1) + "\n")
        card = self.card()
        (folder / CARD).write_text(json.dumps(card, indent=1) + "\n")
        return card

    def card(self) -> dict[str, Any]:
        """Accuracy after 0 to 6 thoughts on held-out problems, by number of steps."""
        low, high = self.options.steps
        by_steps: dict[str, list[float]] = {}
        teacher: dict[str, float] = {}
        tested: dict[str, int] = {}
        for k in range(low, high + 1):
            problems = held_out_problems(self.options, k, N_TEST)
            counts = range(self.options.thoughts + 1)
            by_steps[str(k)] = [self.student.accuracy(problems, n) for n in counts]
            teacher[str(k)] = self.student.teacher_accuracy(problems)
            tested[str(k)] = len(problems)
        mean = np.mean(list(by_steps.values()), axis=0)
        return {
            "options": asdict(self.options),
            "parameters": sum(p.numel() for p in self.student.parameters()),
            "minutes": round(self.seconds / 60, 1),
            "different_held_out_problems": tested,
            "accuracy_after_thoughts": [round(float(a), 4) for a in mean],
            "accuracy_after_thoughts_by_steps": by_steps,
            "accuracy_with_worked_solution": teacher,
            "history": self.history,
            "versions": versions(),
        }


def held_out_problems(options: Options, n_steps: int, n: int) -> Chains:
    """Held-out problems, all different, the same for every seed and number of thoughts; fewer than
    `n` where few numbers make few problems."""
    rng = np.random.default_rng([2**31, n_steps, options.numbers])
    return different(draw_chains(rng, 4 * n, n_steps, options.numbers, "held_out"), n)


def train(options: Options, folder: Path, progress: bool = True) -> dict[str, Any]:
    """Train to the end and export; returns the card."""
    training = Training(options, folder)
    training.run(progress=progress)
    card = training.export()
    for name in (_PROGRESS, *(p.name for p in folder.glob(f"*.{_STATE}"))):
        (folder / name).unlink()
    return card


app = typer.Typer(add_completion=False)


@app.command()
def command(
    out: Annotated[Path, typer.Option(help="Folder of the model; a training goes on in it.")],
    numbers: Annotated[int, typer.Option(help="Numbers lie below it.")] = 20,
    steps: Annotated[str, typer.Option(help="Steps of a problem: 3, or fewest-most as 2-4.")] = "3",
    thoughts: Annotated[int, typer.Option(help="Thoughts; 0 trains the control.")] = 6,
    examples: Annotated[int, typer.Option(help="Problems seen in all.")] = 369_000,
    d_model: Annotated[int, typer.Option(help="Width.")] = 96,
    layers: Annotated[int, typer.Option(help="Layers.")] = 2,
    heads: Annotated[int, typer.Option(help="Heads a layer.")] = 4,
    batch: Annotated[int, typer.Option(help="Problems an update.")] = 128,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-3,
    seed: Annotated[int, typer.Option(help="Of weights and problems.")] = 0,
    threads: Annotated[int, typer.Option(help="Threads; one is fastest for a small model.")] = 1,
) -> None:
    """Train a small CODI on chains of additions, subtractions and multiplications."""
    low, _, high = steps.partition("-")
    if not low.isdigit() or not (high or low).isdigit():
        raise ThoughtTrainingError(f"--steps {steps!r}: a number, or two as 2-4.")
    options = Options(
        numbers=numbers,
        steps=(int(low), int(high or low)),
        d_model=d_model,
        layers=layers,
        heads=heads,
        thoughts=thoughts,
        examples=examples,
        batch=batch,
        lr=lr,
        seed=seed,
    )
    if (out / CARD).is_file():
        raise ThoughtTrainingError(f"{out} holds a finished model: give another --out.")
    torch.set_num_threads(threads)
    with interruptible():
        card = train(options, out)
    from rich.console import Console

    shown = ", ".join(f"{a:.1%}" for a in card["accuracy_after_thoughts"])
    Console().print(
        f"Accuracy after 0 to {thoughts} thoughts on held-out problems: {shown}.\n{out}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    import sys

    run_app(app, list(sys.argv[1:] if arguments is None else arguments), "tasks.gsm8k_thoughts")


if __name__ == "__main__":
    main()
