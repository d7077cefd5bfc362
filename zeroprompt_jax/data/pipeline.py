"""The data of an experiment: which tasks, which vocabulary, which lengths, and how they are mixed and cached."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zeroprompt_jax.data import cache, cards, mixture, seqio_bridge, shares, subsets
from zeroprompt_jax.data.batches import Features, TrainStream
from zeroprompt_jax.data.store import Store
from zeroprompt_jax.data.task_modules import import_module
from zeroprompt_jax.data.vocabulary import Vocabulary, load_vocabulary
from zeroprompt_jax.errors import UserError, check_range, unknown
from zeroprompt_jax.paths import place


@dataclasses.dataclass(frozen=True)
class Data:
    """What an experiment reads.

    Attributes:
      mixture: the training mixture, or one task; of this package's registry or else of seqio's, rates included.
      modules: imported before anything is looked up, so that their tasks are registered; an entry that is callable
        (a configured `register_directory`, say) is called instead.
      feature_lengths: token lengths, EOS included: {'inputs': T, 'targets': S}, and 'instructions' for methods that read
        the instruction apart.
      vocabulary: as `load_vocabulary` takes it.
      evaluation: group name to mixture, such as {'unseen_tasks': 'procedural_unseen_tasks'}.
      rates: explicit (the mixture's own), uniform, proportional or temperature; `cap` and `temperature` go with them.
      train_tasks: train on so many of the mixture's tasks, their types in proportion (`subsets.nested_order`); None is
        all. With one subset_seed, a smaller number's tasks are among a larger one's.
      subset_seed: of the choice of these tasks.
      max_train_examples, max_test_examples: per task, the first ones; the latter also of `validation`.
      max_examples_per_label: per task and answer, the first ones; for `train` only. Answers are told apart by their
        text, so of free text it leaves out repeated answers alone.
      option_seed: lists each example's answer options in an order drawn by this seed and the example; None keeps theirs.
      instruct_inputs: whether the encoder's input begins with the instruction; False for methods that read it apart.
      instruction_limit: longer instructions are cut to so many tokens; with None they are an error.
      unknown_targets: error, drop or keep answers with text outside the vocabulary.
      cache_dir: of token ids, shared by runs; None is a folder of its own in MODEL_DIR.
      batching: padded, packed (several examples a row, for training whose conditioning all tasks share), buckets
        (batches of similarly long rows), grouped (batches of `instruction_groups` equal runs of rows, each with its
        own instruction), few_tasks (each batch has rows of a random number of tasks) or every_task (of all tasks).
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
    train_tasks: int | None = None
    subset_seed: int = 0
    max_train_examples: int | None = None
    max_test_examples: int | None = None
    max_examples_per_label: int | None = None
    option_seed: int | None = None
    instruct_inputs: bool = True
    instruction_limit: int | None = None
    unknown_targets: str = "error"
    cache_dir: str | None = None
    batching: str = "padded"
    bucket_lengths: Sequence[int] = ()
    instruction_groups: int = 8
    seed: int = 0

    def __post_init__(self):
        if self.cache_dir is not None:
            object.__setattr__(self, "cache_dir", place(self.cache_dir, "Data.cache_dir"))
        check_range(self, "cap train_tasks max_train_examples max_test_examples max_examples_per_label")
        check_range(self, "instruction_limit bucket_lengths instruction_groups")
        check_range(self, "temperature", above=0)

    def features(self) -> Features:
        for name in self.feature_lengths:
            if name not in ("inputs", "targets", "instructions"):
                raise unknown("feature", name, ("inputs", "targets", "instructions"))
        for name in ("inputs", "targets"):
            if name not in self.feature_lengths:
                raise UserError(f"The feature lengths {dict(self.feature_lengths)} lack '{name}'.")
        return Features(
            **self.feature_lengths, instruction_limit=self.instruction_limit, instruct_inputs=self.instruct_inputs
        )

    def register(self, more: Sequence[str] = ()) -> None:
        """Imports or calls the task modules, and `more` of them."""
        for module in (*self.modules, *more):
            if callable(module):
                module()
                continue
            import_module(module)

    def training(self) -> dict[str, float]:
        """Training task to its registered relative rate."""
        rates = seqio_bridge.find_mixture(self.mixture)
        if self.train_tasks is None:
            return rates
        types = {task: seqio_bridge.type_of(task) for task in rates}
        return {task: rates[task] for task in subsets.choose(types, self.train_tasks, self.subset_seed)}

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Evaluation group to its tasks."""
        return {group: tuple(seqio_bridge.find_mixture(name)) for group, name in self.evaluation.items()}

    def open(
        self, model_dir: str, train: bool = True, progress: bool = True, engine: cache.Engine | None = None
    ) -> tuple[Store, Vocabulary]:
        """Caches what is not cached yet, and opens it. See `cache.build` for the engine."""
        tasks = list(self.training()) if train else []
        tasks = list(dict.fromkeys([*tasks, *(t for group in self.groups().values() for t in group)]))
        vocabulary = load_vocabulary(self.vocabulary)
        most = self.max_test_examples
        limits = {"train": self.max_train_examples, "validation": most, "test": most}
        store = cache.build(
            self.cache_dir or os.path.join(model_dir, "cache"),
            tasks,
            vocabulary,
            splits=cards.SPLITS,
            max_examples={split: n for split, n in limits.items() if n is not None},
            max_per_label=self.max_examples_per_label,
            unknown_targets=self.unknown_targets,
            option_seed=self.option_seed,
            modules=[m for m in self.modules if isinstance(m, str)],
            engine=engine,
            progress=progress,
        )
        return store, vocabulary

    def shares(self, store: Store) -> dict[str, float]:
        """Sampling share of every training task."""
        explicit = self.training()
        sizes = {task: store.size(task, "train") for task in explicit}
        options = {"cap": self.cap, "temperature": self.temperature}
        return mixture.rates(sizes, self.rates, explicit=explicit if self.rates == "explicit" else None, **options)

    def describe_shares(self, store: Store, draws: int) -> list[str]:
        """Lines on what the shares come to in a run that draws so many examples; see `shares.describe`."""
        found = self.shares(store)
        types = {task: store.card(task).type for task in found}
        return shares.describe(found, types, {task: store.size(task, "train") for task in found}, draws)

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
