"""The model at hand as a writer: continues or completes texts, for the operators of the genetic search."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from zeroprompt_jax.data.vocabulary import Vocabulary, load_vocabulary
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.evaluation.ranking import bucket
from zeroprompt_jax.models import decoding, t5
from zeroprompt_jax.models.t5 import Backbone, T5Config
from zeroprompt_jax.training import checkpoint, state as states

_SHORT = 16


@dataclasses.dataclass(frozen=True)
class Writer:
    """A T5 that writes. What it writes for a row depends on that row and its seed alone.

    Attributes:
      config, params: of the backbone.
      vocabulary: of the model; sentinels are its extra ids, the first being the last id.
      batch_size: most rows at a time.
    """

    config: T5Config
    params: Mapping[str, Any]
    vocabulary: Vocabulary
    batch_size: int = 64

    def sentinel(self, number: int = 0) -> int:
        """The id that stands for the hole of this number."""
        if number >= self.vocabulary.extra_ids:
            raise UserError(
                f"The vocabulary '{self.vocabulary.spec}' has {self.vocabulary.extra_ids} extra ids, too few for "
                f"{number + 1} holes. Write '{self.vocabulary.spec}:100' for T5's hundred."
            )
        return self.vocabulary.size - 1 - number

    def write(
        self,
        rows: Sequence[Sequence[int]],
        seeds: Sequence[int],
        strategy: decoding.Strategy,
        max_length: int,
        samples: int = 1,
    ) -> list[list[list[int]]]:
        """Per row, `samples` answers' token ids without EOS.

        Args:
          rows: the encoder's inputs, token ids without EOS.
          seeds: a number below 2³² per row, for `Sample`.
          strategy: Greedy, Sample or Beam.
          max_length: most tokens of an answer, EOS included.
        """
        eos = self.vocabulary.eos_id
        groups: dict[int, list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(bucket(len(row) + 1, _SHORT), []).append(i)
        out: list[list[list[int]]] = [[] for _ in rows]
        for length, members in sorted(groups.items()):
            for start in range(0, len(members), self.batch_size):
                part = members[start : start + self.batch_size]
                tokens = np.zeros((min(bucket(len(part), 4, 4), self.batch_size), length), np.int32)
                keys = np.zeros(len(tokens), np.uint32)
                for b, i in enumerate(part):
                    tokens[b, : len(rows[i]) + 1] = [*rows[i], eos]
                    keys[b] = seeds[i]
                tokens[len(part) :, 0] = eos
                wanted = {"strategy": strategy, "max_length": max_length, "samples": samples, "eos_id": eos}
                answers = _write(self.params, tokens, keys, config=self.config, **wanted)
                for i, row in zip(part, np.asarray(answers).tolist()):
                    out[i] = [_before(ids, eos) for ids in row]
        return out

    def fills(self, ids: Sequence[int], holes: int) -> list[str] | None:
        """What an answer says was in each hole, in order; None where it leaves one out."""
        places = []
        for number in range(holes):
            sentinel = self.sentinel(number)
            if sentinel not in ids:
                return None
            places.append(ids.index(sentinel))
        if places != sorted(places):
            return None
        ends = [*places[1:], next((i for i in range(places[-1] + 1, len(ids)) if self._is_sentinel(ids[i])), len(ids))]
        return [self.vocabulary.decode(ids[a + 1 : b]).strip() for a, b in zip(places, ends)]

    def _is_sentinel(self, token: int) -> bool:
        return token >= self.vocabulary.size - self.vocabulary.extra_ids


def _before(ids: list[int], eos: int) -> list[int]:
    return ids[: ids.index(eos)] if eos in ids else ids


@functools.partial(jax.jit, static_argnames=("config", "strategy", "max_length", "samples", "eos_id"))
def _write(params, tokens, seeds, *, config, strategy, max_length, samples, eos_id):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), seeds)
    found = decoding.generate(
        Backbone(config, params),
        tokens,
        strategy=strategy,
        max_length=max_length,
        rng=keys,
        eos_id=eos_id,
        samples=samples,
    )
    return found.tokens


@functools.lru_cache(maxsize=1)
def load(path: str) -> Writer:
    """The T5 in a directory in Hugging Face layout, or of a model's name (`pretrained`), with its own vocabulary.

    Raises UserError where there is none."""
    config = checkpoint.pretrained_config(path)
    if config is None:
        raise UserError(
            f"'{path}' is no directory of a T5 in Hugging Face layout (config.json, .safetensors, spiece.model)."
        )
    shapes = states.flatten({"backbone": jax.eval_shape(lambda: t5.init(config, jax.random.key(0)))})
    params = states.unflatten(checkpoint.load_params(path, shapes))["backbone"]
    return Writer(config, params, load_vocabulary(path))
