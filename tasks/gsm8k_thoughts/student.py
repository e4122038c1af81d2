"""A small CODI to be trained: a GPT-2 that is teacher and student at once, and its projection.

The teacher reads question, worked solution, `answer` and the answer's number. The student reads
question, `<bot>`, six thoughts, `<eot>`, `answer` and the number, with x_1 = prj(h(bot)) and
x_{i+1} = prj(h(x_i)), h after the final norm. Both are cross-entropy on the number (the teacher on
its worked solution too), and the student's hidden states at `answer` are pulled to the teacher's
of every layer, which are not pulled back. Source: Shen et al. 2025, CODI, arXiv:2502.21074.

The question's tokens are computed once and serve both, as attention only looks back.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, smooth_l1_loss
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from tasks.gsm8k_thoughts.chains import ANSWER, BOT, EOT, Chains, Vocabulary
from tasks.gsm8k_thoughts.projection import Projection


class Student(nn.Module):
    """The model, its projection, and the tokens around the thoughts."""

    def __init__(
        self, vocabulary: Vocabulary, d_model: int, n_layers: int, n_heads: int, longest: int
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        config = GPT2Config(
            vocab_size=len(vocabulary),
            n_positions=longest,
            n_embd=d_model,
            n_layer=n_layers,
            n_head=n_heads,
            activation_function="gelu",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.model = GPT2LMHeadModel(config)
        self.model.set_attn_implementation("sdpa")
        self.prj = Projection(d_model, d_model)

    @property
    def _body(self) -> Any:
        return self.model.transformer

    def read(
        self, tokens: Int[Tensor, "row position"]
    ) -> tuple[DynamicCache, Float[Tensor, "row d_model"]]:
        """Keys and values of the questions, and the last hidden state after the final norm."""
        out = self._body(input_ids=tokens, use_cache=True)
        return out.past_key_values, out.last_hidden_state[:, -1]

    def think(
        self, cache: DynamicCache, n_thoughts: int
    ) -> tuple[DynamicCache, Float[Tensor, "row d_model"]]:
        """Put `<bot>` and the thoughts after the questions, in place; also the last hidden state
        after the final norm."""
        rows = cache.layers[0].keys.shape[0]  # type: ignore[union-attr]
        hidden = self._words((BOT,), rows, cache)
        for _ in range(n_thoughts):
            embedded = self.prj(hidden)[:, None]
            out = self._body(inputs_embeds=embedded, past_key_values=cache, use_cache=True)
            hidden = out.last_hidden_state[:, -1]
        return cache, hidden

    def _words(self, words: tuple[str, ...], rows: int, cache: DynamicCache) -> Tensor:
        ids = torch.tensor([self.vocabulary.id(w) for w in words]).expand(rows, -1)
        out = self._body(input_ids=ids, past_key_values=cache, use_cache=True)
        return out.last_hidden_state[:, -1]

    def answer(
        self, cache: DynamicCache, n_thoughts: int
    ) -> tuple[Float[Tensor, "row vocab"], list[Float[Tensor, "row d_model"]]]:
        """Logits of the answer after `n_thoughts` thoughts, and the hidden states of all layers
        where they are given."""
        cache, _ = self.think(cache, n_thoughts)
        rows = cache.layers[0].keys.shape[0]  # type: ignore[union-attr]
        ids = torch.tensor([self.vocabulary.id(w) for w in (EOT, ANSWER)]).expand(rows, -1)
        out = self._body(
            input_ids=ids, past_key_values=cache, use_cache=True, output_hidden_states=True
        )
        states = [h[:, -1] for h in out.hidden_states[1:]]
        return self.model.lm_head(states[-1]), states

    def losses(self, chains: Chains, n_thoughts: int) -> dict[str, Tensor]:
        """Cross-entropies of teacher and student, and the distance of their hidden states."""
        questions = torch.from_numpy(self.vocabulary.questions(chains))
        worked = torch.from_numpy(self.vocabulary.worked(chains))
        number = torch.from_numpy(self.vocabulary.number(chains.answers))
        asked, last = self.read(questions)
        kept = branch(asked)

        final = torch.full_like(number, self.vocabulary.id(ANSWER))[:, None]
        shown = torch.cat([worked, final], 1)
        out = self._body(
            input_ids=shown, past_key_values=asked, use_cache=True, output_hidden_states=True
        )
        logits = self.model.lm_head(torch.cat([last[:, None], out.hidden_states[-1]], 1))
        wanted = torch.cat([shown, number[:, None]], 1)
        teacher = cross_entropy(logits.flatten(0, 1), wanted.flatten())
        states = [h[:, -1].detach() for h in out.hidden_states[1:]]

        given, own = self.answer(kept, n_thoughts)
        distance = torch.stack(
            [smooth_l1_loss(a, b) / b.std() for a, b in zip(own, states, strict=True)]
        ).mean()
        return {
            "teacher": teacher,
            "student": cross_entropy(given, number),
            "distance": distance,
        }

    @torch.no_grad()
    def accuracy(self, chains: Chains, n_thoughts: int, batch: int = 500) -> float:
        """Share of problems answered right after `n_thoughts` thoughts."""
        right = 0
        for start in range(0, len(chains), batch):
            part = chains.take(slice(start, start + batch))
            cache, _ = self.read(torch.from_numpy(self.vocabulary.questions(part)))
            logits, _ = self.answer(cache, n_thoughts)
            number = torch.from_numpy(self.vocabulary.number(part.answers))
            right += int((logits.argmax(-1) == number).sum())
        return right / len(chains)

    @torch.no_grad()
    def teacher_accuracy(self, chains: Chains) -> float:
        """Share of problems answered right when the worked solution is given."""
        words = [self.vocabulary.questions(chains), self.vocabulary.worked(chains)]
        tokens = torch.cat([torch.from_numpy(w) for w in words], 1)
        final = torch.full((len(tokens), 1), self.vocabulary.id(ANSWER))
        logits = self.model(torch.cat([tokens, final], 1)).logits[:, -1]
        number = torch.from_numpy(self.vocabulary.number(chains.answers))
        return float((logits.argmax(-1) == number).float().mean())


def branch(cache: DynamicCache) -> DynamicCache:
    """A cache that goes on from the same keys and values without changing the other."""
    new = DynamicCache()
    layers: list[Any] = cache.layers
    for i, layer in enumerate(layers):
        new.update(layer.keys, layer.values, i)
    return new
