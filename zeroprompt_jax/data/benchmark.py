"""How much time and memory the training stream of N tasks takes, and stock SeqIO for the same tasks.

Every figure comes from a process of its own, so that peak memory is that of one thing: one process caches the tasks (it
is not counted), one opens the cache and draws batches, one does with stock SeqIO what its users do.
"""

import functools
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from zeroprompt_jax.data import cards
from zeroprompt_jax.data.pipeline import Data
from zeroprompt_jax.errors import UserError

TRAIN, TEST = 100, 10  # examples per task
MIXTURE = "bench"
_WORDS = ("stone", "river", "light", "garden", "paper", "music", "wind", "tree", "house", "water", "fire", "glass")
_TYPES = 50
_WINDOWS = 2  # of 256 batches, so that planning is counted at its share
_COMMAND = "from zeroprompt_jax.data import benchmark; benchmark.main()"


def measure(tasks: int, batch: int, inputs: int, targets: int) -> dict[str, Any]:
    """Caches `tasks` small text tasks in a temporary folder and draws training batches from it in a new process.

    Args:
      tasks: their number.
      batch: rows per batch.
      inputs, targets: byte tokens per row, EOS included.

    Returns:
      `tasks`; `start_s`, seconds from the start of the process, its imports left out, until the first batch is there:
      registration, checking and opening the cache, planning; `examples_per_s` from then on; `peak_rss_gib`.
    """
    _check(tasks)
    with tempfile.TemporaryDirectory(prefix="zeroprompt_bench_") as directory:
        _child("cache", tasks, directory)
        return {"tasks": tasks, **_child("serve", tasks, directory, batch, inputs, targets)}


def measure_seqio(tasks: int, batch: int, inputs: int, targets: int, seconds: int = 15) -> dict[str, Any]:
    """The same for stock SeqIO, with the same texts: tasks and a mixture in its registries, its own tokenisation,
    shuffling, mixing, feature conversion and batching. After the first batch it draws for `seconds`, and at least one.

    Returns:
      As `measure`, with `seqio_` before every name. At 1,000 tasks this takes ten minutes.
    """
    _check(tasks)
    found = {"tasks": tasks, **_child("seqio", tasks, batch, inputs, targets, seconds)}
    return {f"seqio_{name}": value for name, value in found.items()}


def _check(tasks: int) -> None:
    if tasks < 1:
        raise UserError(f"A benchmark of {tasks} tasks is none; give at least 1.")


def _child(what: str, *arguments) -> dict[str, Any]:
    # Not `-m`: what a module defines while it is __main__, caching's worker processes cannot find.
    command = [sys.executable, "-c", _COMMAND, what, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"The benchmark's {what} process failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def examples(task: int, split: str):
    """Sentences of 8 to 16 words about 60 characters long; the answer is one of the words."""
    draw = random.Random(f"{task} {split}")
    for _ in range(TRAIN if split == "train" else TEST):
        words = draw.choices(_WORDS, k=draw.randrange(8, 17))
        yield {"input": " ".join(words), "target": words[task % 8]}


def instruction(task: int) -> str:
    return f"Task {task}: repeat word number {task % 8 + 1}."


def register(tasks: int) -> None:
    """Registers the benchmark's tasks and the mixture `bench` of them all."""
    for i in range(tasks):
        card = cards.TaskCard(name=f"bench_{i}", type=f"type_{i % _TYPES}", instructions=(instruction(i),))
        cards.register(card, cards.Source(functools.partial(examples, i), f"bench {i} {TRAIN} {TEST}"))
    cards.register_mixture(MIXTURE, [f"bench_{i}" for i in range(tasks)])


def _data(directory: str, inputs: int = 128, targets: int = 32) -> Data:
    lengths = {"inputs": inputs, "targets": targets}
    return Data(MIXTURE, feature_lengths=lengths, vocabulary="bytes", cache_dir=directory)


def _cache(tasks: int, directory: str) -> dict[str, Any]:
    register(tasks)
    began = time.perf_counter()
    _data(directory).open(directory)
    return {"cache_s": time.perf_counter() - began}


def _serve(tasks: int, directory: str, batch: int, inputs: int, targets: int) -> dict[str, Any]:
    began = time.perf_counter()
    register(tasks)
    data = _data(directory, inputs, targets)
    store, _ = data.open(directory, progress=False)
    stream = data.stream(store, batch)
    stream.batch(0)
    start_s = time.perf_counter() - began
    count = _WINDOWS * 256
    began = time.perf_counter()
    for n in range(1, count + 1):
        stream.batch(n)
    return _figures(start_s, count * batch / (time.perf_counter() - began))


def _seqio(tasks: int, batch: int, inputs: int, targets: int, seconds: int) -> dict[str, Any]:
    import seqio  # noqa: F401  an import, so not counted

    began = time.perf_counter()
    batches = seqio_batches(tasks, batch, inputs, targets)
    next(batches)
    start_s = time.perf_counter() - began
    began, count, spent = time.perf_counter(), 0, 0.0
    while not count or spent < seconds:
        next(batches)
        count, spent = count + 1, time.perf_counter() - began
    return _figures(start_s, count * batch / spent)


def seqio_batches(tasks: int, batch: int, inputs: int, targets: int) -> Iterator[dict[str, Any]]:
    """Registers the benchmark's tasks and mixture with seqio, and gives training batches as its users get them."""
    import seqio
    import tensorflow as tf

    feature = seqio.Feature(seqio.ByteVocabulary(), add_eos=True)

    def source(task: int):
        def dataset(split, shuffle_files=False, seed=None):
            rows = list(examples(task, split))
            texts = {
                "inputs": [f"{instruction(task)} {row['input']}" for row in rows],
                "targets": [row["target"] for row in rows],
            }
            return tf.data.Dataset.from_tensor_slices(texts)

        return seqio.FunctionDataSource(dataset, splits=("train", "test"))

    for i in range(tasks):
        seqio.TaskRegistry.add(
            f"bench_{i}",
            source=source(i),
            preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim],
            output_features={"inputs": feature, "targets": feature},
            metric_fns=[],
        )
    seqio.MixtureRegistry.add(MIXTURE, [f"bench_{i}" for i in range(tasks)], default_rate=1.0)
    lengths = {"inputs": inputs, "targets": targets}
    dataset = seqio.MixtureRegistry.get(MIXTURE).get_dataset(lengths, "train", shuffle=True, seed=0)
    dataset = seqio.EncDecFeatureConverter(pack=False)(dataset, lengths).batch(batch)
    return dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def _figures(start_s: float, examples_per_s: float) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS, else in KiB
    peak /= 2**30 if sys.platform == "darwin" else 2**20
    return {"start_s": start_s, "examples_per_s": examples_per_s, "peak_rss_gib": peak}


def main() -> None:
    """The life of a child process: `cache`, `serve` or `seqio`, and its numbers; prints one JSON line."""
    what, *given = sys.argv[1:]
    parts = {"cache": _cache, "serve": _serve, "seqio": _seqio}
    print(json.dumps(parts[what](*(int(g) if g.isdigit() else g for g in given))))
