"""The data of an experiment: which tasks, which vocabulary, which lengths, and how they are mixed and cached."""

import dataclasses
import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zeroprompt_jax.data import cache, cards, mixture
from zeroprompt_jax.data.batches import Features, TrainStream
from zeroprompt_jax.data.store import Store
from zeroprompt_jax.data.vocabulary import Vocabulary, load_vocabulary
from zeroprompt_jax.errors import UserError, unknown

PACKAGED = "zeroprompt_jax.tasks"


@dataclasses.dataclass(frozen=True)
class Data:
    """What an experiment reads.

    Attributes:
      mixture: the training mixture, or one task.
      modules: imported before anything is looked up, so that their tasks are registered; an entry that is callable
        (a configured `register_directory`, say) is called instead.
      feature_lengths: token lengths, EOS included: {'inputs': T, 'targets': S}, and 'instructions' for methods that read
        the instruction apart.
      vocabulary: as `load_vocabulary` takes it.
      evaluation: group name to mixture, such as {'unseen_tasks': 'procedural_unseen_tasks'}.
      rates: explicit (the mixture's own), uniform, proportional or temperature; `cap` and `temperature` go with them.
      max_train_examples, max_test_examples: per task, the first ones.
      instruction_limit: longer instructions are cut to so many tokens; with None they are an error.
      unknown_targets: error, drop or keep answers with text outside the vocabulary.
      cache_dir: of token ids, shared by runs; None is a folder of its own in MODEL_DIR.
      batching: padded, packed (several examples a row, for training whose conditioning all tasks share), buckets
        (batches of similarly long rows) or grouped (batches of `instruction_groups` equal runs of rows, each with its
        own instruction).
      bucket_lengths: encoder lengths for buckets, besides the feature length itself; its quarters by default.
      seed: of the order of the examples.
    """

    mixture: str
    modules: Sequence[str | Callable[[], Any]] = ()
    feature_lengths: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"inputs": 128, "targets": 32})
    vocabulary: str = "bytes"
    evaluation: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rates: str = "explicit"
    cap: int | None = None
    temperature: float = 1.0
    max_train_examples: int | None = None
    max_test_examples: int | None = None
    instruction_limit: int | None = None
    unknown_targets: str = "error"
    cache_dir: str | None = None
    batching: str = "padded"
    bucket_lengths: Sequence[int] = ()
    instruction_groups: int = 8
    seed: int = 0

    def features(self) -> Features:
        for name in self.feature_lengths:
            if name not in ("inputs", "targets", "instructions"):
                raise unknown("feature", name, ("inputs", "targets", "instructions"))
        for name in ("inputs", "targets"):
            if name not in self.feature_lengths:
                raise UserError(f"The feature lengths {dict(self.feature_lengths)} lack '{name}'.")
        return Features(**self.feature_lengths, instruction_limit=self.instruction_limit)

    def register(self, more: Sequence[str] = ()) -> None:
        """Imports or calls the task modules, and `more` of them."""
        for module in (*self.modules, *more):
            if callable(module):
                module()
                continue
            try:
                importlib.import_module(module)
            except ModuleNotFoundError as e:
                if e.name is None or not module.startswith(e.name):
                    raise
                raise UserError(f"There is no task module '{module}'; packaged ones are in {PACKAGED}.") from e

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Evaluation group to its tasks."""
        return {group: tuple(cards.mixture(name)) for group, name in self.evaluation.items()}

    def open(self, model_dir: str, train: bool = True, progress: bool = True) -> tuple[Store, Vocabulary]:
        """Caches what is not cached yet, and opens it."""
        tasks = list(cards.mixture(self.mixture)) if train else []
        tasks = list(dict.fromkeys([*tasks, *(t for group in self.groups().values() for t in group)]))
        vocabulary = load_vocabulary(self.vocabulary)
        limits = {"train": self.max_train_examples, "test": self.max_test_examples}
        store = cache.build(
            self.cache_dir or os.path.join(model_dir, "cache"),
            tasks,
            vocabulary,
            max_examples={split: n for split, n in limits.items() if n is not None},
            unknown_targets=self.unknown_targets,
            progress=progress,
        )
        return store, vocabulary

    def shares(self, store: Store) -> dict[str, float]:
        """Sampling share of every training task."""
        explicit = cards.mixture(self.mixture)
        sizes = {task: store.size(task, "train") for task in explicit}
        options = {"cap": self.cap, "temperature": self.temperature}
        return mixture.rates(sizes, self.rates, explicit=explicit if self.rates == "explicit" else None, **options)

    def stream(self, store: Store, batch_size: int) -> TrainStream:
        return TrainStream(
            store,
            self.shares(store),
            self.features(),
            batch_size,
            self.seed,
            batching=self.batching,
            buckets=self.bucket_lengths,
            groups=self.instruction_groups,
        )
