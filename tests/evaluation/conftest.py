"""A tiny model over bytes and a small cached store, shared by the tests that evaluate and predict."""

import random
import sys
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest

from zeroprompt_jax.data import cache, cards
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.models import t5

for folder in ("evaluation", "models"):  # the helpers of this folder and of its neighbour: instructed and tiny_t5
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / folder))

_WORDS = ("ab", "bcd", "ca", "abba", "dad", "cab")


def _examples(options, long):
    def examples(split):
        rng = random.Random(f"{options} {long} {split}")
        for k in range(9):
            text = " ".join(rng.choice(_WORDS) for _ in range(12 if long else 1 + k % 2))
            if options == "own":
                choices = _WORDS[: 2 + k % 4]
                yield {"input": text, "target": rng.choice(choices), "options": choices}
            else:
                yield {"input": text, "target": rng.choice(options) if options else text.split()[0]}

    return examples


@pytest.fixture(scope="session")
def vocabulary():
    return load_vocabulary("bytes")


@pytest.fixture(scope="session")
def store(tmp_path_factory, vocabulary):
    """Tasks: `words` and `long` generate; `yes_no` has fixed options and `own` an example's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cards, "_TASKS", {})
        for name, type, options, long, metrics in (
            ("words", "copy", (), False, ("exact_match", "rouge1")),
            ("long", "copy", (), True, ("rougeL", "exact_match")),
            ("yes_no", "choice", ("yes", "no", "it is impossible"), False, ("accuracy",)),
            ("own", "choice", "own", False, ("accuracy",)),
        ):
            card = cards.TaskCard(
                name=name,
                type=type,
                family=f"family of {type}" if type == "copy" else "",
                instructions=(f"Do {name}.", f"Please {name} now."),
                held_out_instructions=(f"{name}!", f"go {name}", f"{name}?") if name == "words" else (),
                options=options if options and options != "own" else (),
                metrics=metrics,
            )
            cards.register(card, cards.Source(_examples(options, long), f"{name} 1"))
        names = list(cards.task_names())
        return cache.build(tmp_path_factory.mktemp("store"), names, vocabulary, max_examples={}, progress=False)


@pytest.fixture(scope="session")
def config(vocabulary):
    return t5.T5Config(
        vocab_size=vocabulary.size,
        emb_dim=16,
        num_heads=2,
        head_dim=4,
        mlp_dim=24,
        num_encoder_layers=1,
        num_decoder_layers=1,
        dtype="float32",
        dropout_rate=0.0,
    )


@pytest.fixture(scope="session")
def variables(config):
    """A random model that says a few letters, depending on its input, and ends some answers early."""

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        x = rng.normal(size=leaf.shape) / np.sqrt(leaf.shape[-2] if leaf.ndim > 1 else 1)
        if "scale" in name:
            return (1 + 0.1 * x).astype(np.float32)
        x = x * {"logits_dense": 2.0, "encoder_decoder_attention": 3.0, "token_embedder": 20.0}.get(
            next((k for k in ("logits_dense", "encoder_decoder_attention", "token_embedder") if k in name), ""), 1.0
        )
        if "logits_dense" in name:
            allowed = [1, *(ord(c) + 3 for c in "abcdeno ysit")]
            x[:, allowed] *= 4
        return x.astype(np.float32)

    shapes = jax.eval_shape(lambda: t5.init(config, jax.random.key(0)))
    return {"backbone": jax.tree_util.tree_map_with_path(draw, shapes), "method": {}}
