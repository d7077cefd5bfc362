"""Prediction from Python: texts in, answers or option scores out, in order."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from zeroprompt_jax.data.batches import Features
from zeroprompt_jax.data.cards import LEAST_INPUT
from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.evaluation import modules
from zeroprompt_jax.evaluation.modules import ModuleStore
from zeroprompt_jax.evaluation.ranking import bucket, pack
from zeroprompt_jax.methods.base import Method
from zeroprompt_jax.models import decoding
from zeroprompt_jax.models.t5 import Backbone, T5Config

# Least input length that is compiled for; longer ones are multiples by powers of two, up to the feature's length.
_SHORT = 32
# Least tasks that the module store has places for; more are multiples by powers of four, up to the batch size.
_PLACES = 4


class Prediction(NamedTuple):
    """An answer, and its log-probability under the model (nats, EOS included; for beams divided by their penalty)."""

    text: str
    score: float


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A model that answers texts.

    The result of a text depends on the text and its task alone, not on the others in the call or their order; sampled
    answers are drawn from the seed, the task and the text, so a repeated text gets the same answer.

    Attributes:
      config, variables, method: the model: {'backbone': …, 'method': …}.
      vocabulary: of the model.
      features: token lengths; of an input only what follows the instruction is ever cut to fit.
      instructions: task name to its instruction text, as a mapping or a function. A function raises LookupError or
        UserError for a task it does not know.
      task_ids: task name to its place, or places, in the method's banks, for methods that keep something per task.
      batch_size: most rows at a time.
      module_store: for a method that reads instructions, the folder that keeps what it makes of them, one file per task,
        for later processes too; None keeps it in memory.
      module_capacity: tasks whose modules lie on the device at once, at least the distinct tasks of a batch; by default as
        many as the calls so far have had, up to `batch_size`, so that a task more may compile.
      module_dtype: that they are kept in, float32 or bfloat16; by default the model's, which loses nothing.
      lengths: input lengths to compile for besides `features.inputs`; by default 32 and its multiples by powers of two.
      options: task name to its answer options, as a mapping or a function; none for a task that a mapping does not have.
    """

    config: T5Config
    variables: Mapping[str, Any]
    method: Method
    vocabulary: Any
    features: Features
    instructions: Mapping[str, str] | Callable[[str], str] = dataclasses.field(default_factory=dict)
    task_ids: Mapping[str, Any] | None = None
    batch_size: int = 64
    module_store: str | None = None
    module_capacity: int | None = None
    module_dtype: str | None = None
    lengths: Sequence[int] = ()
    options: Mapping[str, Sequence[str]] | Callable[[str], Sequence[str]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.batch_size < 1:
            raise UserError(f"Predictor batch_size is {self.batch_size}; it must be at least 1.")
        for name in ("module_store", "module_capacity", "module_dtype"):
            if getattr(self, name) is not None and not self.method.reads_instructions:
                raise UserError(f"{name} is set, but the method {type(self.method).__name__} reads no instruction.")

    @functools.cached_property
    def modules(self) -> ModuleStore:
        """What the method, which reads instructions, made of those of the tasks so far."""
        return ModuleStore(
            self.variables,
            self.config,
            self.method,
            self.features.instructions,
            min(self.batch_size, _PLACES) if self.module_capacity is None else self.module_capacity,
            dtype=self.module_dtype,
            directory=self.module_store,
        )

    def predict(
        self,
        texts: Sequence[str],
        tasks: Sequence[str | None] | str | None = None,
        strategy: decoding.Strategy = decoding.Greedy(),
        max_length: int | None = None,
        seed: int = 0,
    ) -> list[Prediction]:
        """Answers each text.

        Args:
          texts: inputs, without their instruction.
          tasks: a task name per text, or one for all; None for raw prompts, which carry their own instruction.
          strategy: Greedy, Sample or Beam.
          max_length: most tokens of an answer, EOS included; by default `features.targets`.
          seed: of sampled answers.

        Raises:
          UserError: an unknown task, tasks that do not match the texts, or an instruction that does not fit.
        """
        max_length = self.features.targets if max_length is None else max_length
        rows, names = self._rows(texts, tasks)
        seeds = [zlib.crc32(f"{seed}/{name or ''}/{text}".encode()) for name, text in zip(names, texts)]
        columns = {"row_seeds": np.array(seeds, np.uint32)}
        out: list[Prediction | None] = [None] * len(texts)
        for index, kept, batch in self._batches(rows, names, columns):
            wanted = {"strategy": strategy, "max_length": max_length, "eos_id": self.vocabulary.eos_id}
            tokens, scores = self._call(_generate, batch, **wanted)
            for i, ids, score in zip(index[:kept], tokens.tolist(), scores.tolist()):
                out[i] = Prediction(self.vocabulary.decode(ids), score)
        return out

    def score(
        self,
        texts: Sequence[str],
        options: Sequence[Sequence[str]] | Sequence[str],
        tasks: Sequence[str | None] | str | None = None,
        length_normalised: bool = False,
        shape: tuple[int, int] | None = None,
    ) -> list[list[float]]:
        """Log-likelihood (nats, EOS included) of each answer option of each text.

        Args:
          texts: inputs, without their instruction.
          options: a list of answer options per text, or one list of strings for all.
          tasks: as in `predict`.
          length_normalised: per token, not summed.
          shape: the number of options and of their tokens (EOS included) that every text's are padded to; by default
            ones near each text's own. For texts that are always scored together it saves padding and compilation.

        Raises:
          UserError: as `predict`, and an empty option list, lists that do not match the texts, or a `shape` too small.
        """
        options = list(options)
        if options and all(isinstance(o, str) for o in options):
            options = [options] * len(texts)
        if len(options) != len(texts):
            raise UserError(
                f"There are {len(options)} option lists for {len(texts)} texts; give one per text, or one for all."
            )
        for i, row in enumerate(options):
            if isinstance(row, str) or not len(row):
                why = f"is the text '{row}', not a list" if isinstance(row, str) else "is empty; give at least one"
                raise UserError(f"The option list of text {i} ('{_shown(texts[i])}') {why}.")
        rows, names = self._rows(texts, tasks)
        encode = functools.cache(self.vocabulary.encode)
        ids = [[encode(option) for option in row] for row in options]
        if shape and ids:
            needed = max(map(len, ids)), max(len(option) + 1 for row in ids for option in row)
            if needed[0] > shape[0] or needed[1] > shape[1]:
                raise UserError(
                    f"The shape {tuple(shape)} of options is too small: there are up to {needed[0]} options of up to "
                    f"{needed[1]} tokens, EOS included."
                )
        counts = np.array([shape[0] if shape else bucket(len(row), 4, 4) for row in ids])
        lengths = np.array([shape[1] if shape else bucket(max(map(len, row)) + 1, least=4) for row in ids])
        out: list[list[float] | None] = [None] * len(texts)
        for index, kept, batch in self._batches(rows, names, {}, counts, lengths):
            count, length = int(counts[index[0]]), int(lengths[index[0]])
            batch["options"], batch["option_mask"] = pack(
                [ids[i] for i in index], self.vocabulary.eos_id, count, length
            )
            sums, tokens = self._call(_score, batch)
            values = sums / np.maximum(tokens, 1) if length_normalised else sums
            for i, row in zip(index[:kept], values):
                out[i] = row[: len(ids[i])].tolist()
        return out

    def _call(self, function, batch, **static) -> tuple[np.ndarray, np.ndarray]:
        try:
            if self.method.reads_instructions and "instruction_tokens" in batch:
                batch = self.modules.attach(batch)
            return jax.device_get(function(self.variables, batch, config=self.config, method=self.method, **static))
        except KeyError as e:
            if e.args[0] not in ("task_ids", "instruction_tokens") or e.args[0] in batch:
                raise
            a_task = "a task for each text (in files 'task', or --task)"
            needs = a_task if e.args[0] == "task_ids" else "Features.instructions above 0"
            raise UserError(f"The method {type(self.method).__name__} reads {e.args[0]}: it needs {needs}.") from None

    def _instruction(self, name: str) -> str:
        if isinstance(self.instructions, Mapping):
            if name not in self.instructions:
                raise unknown("task", name, self.instructions)
            return self.instructions[name]
        try:
            return self.instructions(name)
        except LookupError:
            raise unknown("task", name, self.task_ids or ()) from None

    def options_of(self, name: str) -> Sequence[str]:
        """A task's answer options; none where its answers are free or its examples bring their own."""
        return self.options.get(name, ()) if isinstance(self.options, Mapping) else self.options(name)

    def _rows(self, texts: Sequence[str], tasks) -> tuple[list[dict[str, np.ndarray]], list[str | None]]:
        """Each text's token ids by feature, unpadded, EOS included; and each text's task."""
        if isinstance(texts, str):
            raise UserError("predict and score take a list of texts, not one text.")
        names = [tasks] * len(texts) if tasks is None or isinstance(tasks, str) else list(tasks)
        if len(names) != len(texts):
            raise UserError(
                f"There are {len(names)} tasks for {len(texts)} texts; give one per text, one for all, or None."
            )
        f, v = self.features, self.vocabulary
        instructions = {None: []}
        for name in dict.fromkeys(name for name in names if name is not None):
            if self.task_ids is not None and name not in self.task_ids:
                raise unknown("task", name, self.task_ids)
            instructions[name] = v.encode(self._instruction(name))[: f.instruction_limit]
        rows = []
        for text, name in zip(texts, names):
            instruction, ids = instructions[name], v.encode(text)
            before = instruction if f.instruct_inputs else []
            room = f.inputs - 1 - (len(v.join(before, ids)) - len(ids))
            if before and room < min(LEAST_INPUT, len(ids)):
                raise UserError(
                    f"Feature length inputs={f.inputs} is too short for task '{name}': its instruction has "
                    f"{len(instruction)} tokens, which leaves {max(room, 0)} for the input."
                )
            row = {"encoder_input_tokens": np.array([*v.join(before, ids[:room]), v.eos_id], np.int32)}
            if f.instructions:
                if len(instruction) + 1 > f.instructions and f.instruction_limit is None:
                    raise UserError(
                        f"Feature length instructions={f.instructions} is too short for task '{name}': its instruction "
                        f"has {len(instruction)} tokens and EOS."
                    )
                kept = instruction[: f.instructions - 1]
                row["instruction_tokens"] = np.array([*kept, v.eos_id], np.int32)
            rows.append(row)
        if self.method.reads_instructions and f.instructions and self.module_capacity is None:
            told = {row["instruction_tokens"].tobytes() for row in rows}
            self.modules.grow(min(self.batch_size, bucket(len(told), _PLACES, 4)))
        return rows, names

    def _padded(self, length: int) -> int:
        """The length that an input of so many tokens is padded to."""
        if not self.lengths:
            return min(bucket(length, _SHORT), self.features.inputs)
        return min((n for n in self.lengths if length <= n < self.features.inputs), default=self.features.inputs)

    def _batches(self, rows, names, columns, *keys) -> Iterator[tuple[np.ndarray, int, dict[str, np.ndarray]]]:
        """Yields (numbers of the texts, how many of them count, batch). Texts of one batch agree in `keys` and in their
        padded length, so that no text's shape depends on another text."""
        f = self.features
        lengths = np.array([self._padded(len(r["encoder_input_tokens"])) for r in rows], int)
        named = np.array([name is not None for name in names], bool)
        groups: dict[tuple, list[int]] = {}
        for i, key in enumerate(zip(lengths.tolist(), named.tolist(), *(k.tolist() for k in keys))):
            groups.setdefault(key, []).append(i)
        for (length, has_task, *_), members in sorted(groups.items()):
            for start in range(0, len(members), self.batch_size):
                part = np.array(members[start : start + self.batch_size])
                kept, size = len(part), min(self.batch_size, bucket(len(part), 4, 4))
                part = np.pad(part, (0, size - kept), mode="edge")
                batch = {name: column[part] for name, column in columns.items()}
                widths = {"encoder_input_tokens": length, "instruction_tokens": f.instructions}
                for name in rows[0]:
                    batch[name] = np.zeros((size, widths[name]), np.int32)
                    for b, i in enumerate(part):
                        batch[name][b, : len(rows[i][name])] = rows[i][name]
                if has_task and self.task_ids is not None:
                    batch["task_ids"] = np.array([self.task_ids[names[i]] for i in part], np.int32)
                yield part, kept, batch


def _shown(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"


def _begin(variables, batch, config, method):
    backbone = Backbone(config, variables["backbone"])
    return backbone, modules.condition(variables, batch, method, backbone)


@functools.partial(jax.jit, static_argnames=("config", "method", "strategy", "max_length", "eos_id"))
def _generate(variables, batch, *, config, method, strategy, max_length, eos_id):
    backbone, conditioning = _begin(variables, batch, config, method)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), batch["row_seeds"])
    tokens = batch["encoder_input_tokens"]
    decoded = decoding.generate(backbone, tokens, conditioning, strategy, max_length, keys, eos_id)
    return decoded.tokens[:, 0], decoded.scores[:, 0]


@functools.partial(jax.jit, static_argnames=("config", "method"))
def _score(variables, batch, *, config, method):
    backbone, conditioning = _begin(variables, batch, config, method)
    tokens = batch["encoder_input_tokens"]
    return tuple(decoding.score(backbone, tokens, conditioning, batch["options"], batch["option_mask"]))
