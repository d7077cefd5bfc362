"""What soft prompts start from. Each initialiser makes prompts [N, P, D], one for every slice of a bank."""

import abc
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.methods.base import Setting

Array = jax.Array
Shape = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Initialiser(abc.ABC):
    """Base of all initialisers."""

    @abc.abstractmethod
    def make(self, rng: Array, setting: Setting, shape: Shape) -> Array:
        """Prompts of this shape [N, P, D], float32: slice n for task n of the setting, or, where N is 1, for all tasks.
        Mistakes are UserErrors while tracing, so before anything compiles."""


@dataclasses.dataclass(frozen=True)
class Uniform(Initialiser):
    """Values drawn uniformly from [low, high); the default is the range of Lester et al. 2021, section 2.1."""

    low: float = -0.5
    high: float = 0.5

    def __post_init__(self):
        if not self.low < self.high:
            raise UserError(f"Uniform.low is {self.low} and Uniform.high is {self.high}; low must be below high.")

    def make(self, rng, setting, shape):
        return jax.random.uniform(rng, shape, jnp.float32, self.low, self.high)


@dataclasses.dataclass(frozen=True)
class SampledVocabulary(Initialiser):
    """Embeddings of tokens drawn without replacement from the ids [skip, first): Lester et al. 2021, section 2.1, draw
    from the 5,000 most common, which in a SentencePiece vocabulary come first. skip: the ids of padding, EOS and
    unknown. Where the vocabulary is smaller than `first`, all of it is drawn from."""

    first: int = 5000
    skip: int = 3

    def __post_init__(self):
        if not 0 <= self.skip < self.first:
            raise UserError(
                f"SampledVocabulary draws from the ids from skip {self.skip} up to first {self.first}; there are none."
            )

    def make(self, rng, setting, shape):
        N, P, _ = shape
        end = min(self.first, setting.config.vocab_size)
        if P > end - self.skip:
            raise UserError(
                f"SampledVocabulary cannot draw {P} different tokens: there are {end - self.skip} ids from {self.skip} to "
                f"{end - 1}; give a larger first or a shorter prompt."
            )
        draw = lambda key: jax.random.choice(key, end - self.skip, (P,), replace=False)
        ids_NP = self.skip + jax.vmap(draw)(jax.random.split(rng, N))
        return setting.embedding[ids_NP]


@dataclasses.dataclass(frozen=True)
class ClassLabels(Initialiser):
    """The first rows are embeddings of the answer options, each the mean over its tokens; `fallback` makes the others
    (Lester et al. 2021, section 2.1).

    labels: for every task; None takes each task's own, and for a prompt that all tasks share all of theirs. A task
    without options gets the fallback alone.
    """

    labels: tuple[str, ...] | None = None
    fallback: Initialiser = SampledVocabulary()

    def __post_init__(self):
        if isinstance(self.labels, str):
            raise UserError(f"ClassLabels.labels is the text '{self.labels}'; give a list of texts.")
        if self.labels is not None:
            object.__setattr__(self, "labels", tuple(self.labels))

    def make(self, rng, setting, shape):
        N, P, _ = shape
        labels = self._labels(setting, N)
        most = max(map(len, labels))
        if not most:
            raise UserError("ClassLabels finds no labels: no task here has answer options; give ClassLabels.labels.")
        if most > P:
            raise UserError(f"ClassLabels has {most} labels for a prompt of {P} vectors; the prompt must be as long.")
        prompt = self.fallback.make(rng, setting, shape)
        places = [(n, p, label) for n, own in enumerate(labels) for p, label in enumerate(own)]
        tokens = [_encode(setting, label) for *_, label in places]
        lengths = np.array([len(ids) for ids in tokens])
        of_token = np.repeat(np.arange(len(places)), lengths)
        sums = jax.ops.segment_sum(setting.embedding[np.concatenate(tokens)], of_token, len(places))
        rows, columns, _ = zip(*places)
        return prompt.at[np.array(rows), np.array(columns)].set(sums / lengths[:, None])

    def _labels(self, setting: Setting, N: int) -> list[Sequence[str]]:
        if self.labels is not None:
            return [self.labels] * N
        own = [setting.labels.get(task, ()) for task in setting.tasks]
        return own if N == len(own) else [tuple(dict.fromkeys(itertools.chain(*own)))]


@dataclasses.dataclass(frozen=True)
class Text(Initialiser):
    """Embeddings of a text's tokens, repeated from its start, or cut, to P."""

    text: str

    def make(self, rng, setting, shape):
        ids_P = np.resize(_encode(setting, self.text), shape[1])
        return jnp.broadcast_to(setting.embedding[ids_P], shape)


@dataclasses.dataclass(frozen=True)
class Tokens(Initialiser):
    """Embeddings of given tokens, as of the template words that entailment's slots stand for.

    words: every task's token ids, in the order of its vectors, or one task's for all; None is a token that no word stands
    for, whose values are drawn uniformly from the range of `like`. A task with fewer than P has zeros behind them.
    like: every task's token, or one for all, whose largest absolute value bounds what is drawn: its label word (Kim et al.
    2023's code); needed where some word is None.
    """

    words: tuple[tuple[int | None, ...], ...]
    like: tuple[int, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "words", tuple(tuple(own) for own in self.words))
        object.__setattr__(self, "like", tuple(self.like))
        if not self.like and any(word is None for own in self.words for word in own):
            raise UserError("Tokens.words has tokens without a word; give Tokens.like, the token that bounds their values.")

    def make(self, rng, setting, shape):
        N, P, _ = shape
        for name, given in (("words", self.words), ("like", self.like or self.words)):
            if len(given) not in (1, N):
                raise UserError(f"Tokens.{name} is of {len(given)} tasks, and there are {N}.")
        if (longest := max(map(len, self.words))) > P:
            raise UserError(f"Tokens.words has {longest} tokens of a task, more than its {P} vectors.")
        known = {*itertools.chain(*self.words), *self.like} - {None}
        if wrong := [word for word in known if not 0 <= word < setting.config.vocab_size]:
            raise UserError(f"Tokens has token id {wrong[0]}, and the backbone has {setting.config.vocab_size} embeddings.")
        ids_NP = np.full((len(self.words), P), -1)  # no vector of the task
        drawn_NP = np.zeros((len(self.words), P), bool)
        for n, own in enumerate(self.words):
            ids_NP[n, : len(own)] = [0 if word is None else word for word in own]
            drawn_NP[n, : len(own)] = [word is None for word in own]
        out = jnp.where((ids_NP >= 0)[..., None], setting.embedding[ids_NP], 0.0)
        if drawn_NP.any():
            bound = jnp.abs(setting.embedding[np.array(self.like)]).max(-1)[:, None, None]
            out = jnp.where(drawn_NP[..., None], bound * jax.random.uniform(rng, shape, jnp.float32, -1.0, 1.0), out)
        return jnp.broadcast_to(out, shape).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class File(Initialiser):
    """A prompt [P, D] from a .npy file, as the public prompt-tuning repository (google-research/prompt-tuning) writes
    them; every task starts from it."""

    path: str

    def make(self, rng, setting, shape):
        return _fitting(read_array(self.path, "File.path"), self.path, shape)


@dataclasses.dataclass(frozen=True)
class Trained(Initialiser):
    """Another task's prompt (SPoT, Vu et al. 2022): the tensor `prompt`, [P, D], of a task's safetensors file, or the
    file's only tensor; every task starts from it."""

    path: str

    def make(self, rng, setting, shape):
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            tensors = load_file(self.path)
        except FileNotFoundError:
            raise UserError(f"Trained.path: there is no file '{self.path}'.") from None
        except (OSError, SafetensorError) as e:
            raise UserError(f"Trained.path: '{self.path}' is not a safetensors file ({e}).") from None
        if "prompt" not in tensors and len(tensors) != 1:
            raise UserError(f"Trained.path: '{self.path}' holds no tensor 'prompt', only {', '.join(sorted(tensors))}.")
        found = tensors["prompt"] if "prompt" in tensors else next(iter(tensors.values()))
        return _fitting(found, self.path, shape)


@dataclasses.dataclass(frozen=True)
class FromRun(Initialiser):
    """A prompt that another run trained; every task starts from it.

    run: its MODEL_DIR; one of prompt tuning (`prompt`), or of MPT, whose shared prompt is taken. task: which of its
    tasks' prompts; None takes their mean, which is the prompt itself where all tasks share one (SPoT's generic prompt, Vu
    et al. 2022, section 2.2).
    """

    run: str
    task: str | None = None

    def make(self, rng, setting, shape):
        found = setting.run(self.run)
        if "shared" in found.params and self.task is None:
            return _fitting(found.params["shared"], self.run, shape)
        if "prompt" not in found.params:
            raise UserError(f"FromRun.run '{self.run}' trained no prompt, only {', '.join(sorted(found.params))}.")
        if self.task is None:
            return _fitting(found.params["prompt"].mean(0), self.run, shape)
        if self.task not in found.tasks:
            raise unknown("task in FromRun", self.task, found.tasks)
        return _fitting(found.params["prompt"][list(found.tasks).index(self.task)], self.run, shape)


def read_array(path: str | Path, what: str) -> np.ndarray:
    """The array of a .npy file. UserError, naming the option `what`, for anything else."""
    try:
        found = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{what}: there is no file '{path}'.") from None
    except (OSError, ValueError, EOFError) as e:
        raise UserError(f"{what}: '{path}' is not an array in NumPy's .npy format ({e}).") from None
    if not isinstance(found, np.ndarray):
        raise UserError(f"{what}: '{path}' is an archive of several arrays; give a .npy file of one.")
    return found


def _encode(setting: Setting, text: str) -> np.ndarray:
    """A text's token ids, never none, that the backbone has embeddings for."""
    if setting.encode is None:
        raise UserError("This initialiser encodes text, and there is no vocabulary here.")
    ids = np.asarray(setting.encode(text), np.int32)
    if not ids.size:
        raise UserError(f"The text '{text}' has no tokens, so no prompt can start from it.")
    if ids.max() >= setting.config.vocab_size:
        known = setting.config.vocab_size
        raise UserError(f"The text '{text}' has token id {ids.max()}, and the backbone has embeddings for {known} ids.")
    return ids


def _fitting(found: np.ndarray, path: str, shape: Shape) -> Array:
    """A prompt that was read, [P, D], checked and repeated for every slice."""
    if found.shape != shape[1:]:
        wanted = f"[{shape[1]}, {shape[2]}]"
        raise UserError(f"'{path}' holds shape {list(found.shape)}; this prompt has length × width {wanted}.")
    if not np.issubdtype(found.dtype, np.floating) and found.dtype.name != "bfloat16":
        raise UserError(f"'{path}' holds values of type {found.dtype}, not floating-point numbers.")
    found = found.astype(np.float32)
    if not np.isfinite(found).all():
        raise UserError(f"'{path}' holds {np.sum(~np.isfinite(found)):,} values that are NaN or infinite.")
    return jnp.broadcast_to(found, shape)
