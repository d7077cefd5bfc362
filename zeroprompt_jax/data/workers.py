"""Worker processes that tokenise tasks for `cache.build`.

A worker is a plain child process that reads jobs from its standard input and writes results to its standard output, so
it starts the same from a script, a notebook or a test, whatever the parent's main module does when it is imported. (A
pool of `concurrent.futures` would import that module in every worker, and breaks as a whole when one worker dies.) A
task reaches it as its pickled card and source, or, where these cannot be pickled (functions inside functions), by name
through the task modules, which the worker then imports. Whatever a worker cannot do, or fails at, the parent does
itself: results and errors are those of one process, only later.
"""

import collections
import concurrent.futures
import contextlib
import importlib
import os
import pickle
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from zeroprompt_jax.data.cards import Source, TaskCard
from zeroprompt_jax.data.tokenise import Recipe, find, fingerprint, tokenise
from zeroprompt_jax.data.vocabulary import Vocabulary, load_vocabulary
from zeroprompt_jax.errors import UserError

_AHEAD = 8  # jobs given out per worker before their turn comes; bounds the results that wait in memory
_COMMAND = "from zeroprompt_jax.data import workers; workers.serve()"


class Job(NamedTuple):
    """A task to tokenise, and the fingerprint that says which version of it."""

    name: str
    fingerprint: str
    card: TaskCard
    source: Source


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tokenise_all(
    jobs: Sequence[Job], vocabulary: Vocabulary, recipe: Recipe, modules: Sequence[str], workers: int
) -> Iterator[dict[str, Any]]:
    """What `tokenise` makes of each job, in their order.

    Args:
      jobs: the tasks.
      vocabulary: as workers can load it again by its spec; where they cannot, they are of no use but do no harm.
      recipe: which examples.
      modules: task modules by import path.
      workers: number of processes; with one or none, everything happens in this process.

    Raises:
      UserError: as `tokenise` does, for the first job that has a mistake; or a negative number of workers.
    """
    if workers < 0:
        raise UserError(f"A cache cannot be made by {workers} worker processes.")
    given = (request(job, modules) for job in jobs)
    results = _asked(given, (vocabulary.spec, recipe, tuple(modules)), workers) if workers > 1 else (None for _ in jobs)
    with contextlib.closing(results):
        for job, result in zip(jobs, results, strict=True):
            yield tokenise(job.card, job.source, vocabulary, recipe) if result is None else result


def request(job: Job, modules: Sequence[str]) -> bytes | None:
    """The job as a `Tokeniser` in another process reads it, or None where no other process could do it."""
    try:
        task = pickle.dumps((job.card, job.source))
    except Exception:  # objects raise what they like when they are pickled
        if not modules:
            return None
        task = None
    return pickle.dumps((job.name, job.fingerprint, task))


def _asked(requests: Iterator[bytes | None], settings: tuple, workers: int) -> Iterator[dict[str, Any] | None]:
    """A result for each request, in order; None where a worker did not give one."""
    children = [_Child(settings) for _ in range(workers)]
    idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()
    for child in children:
        idle.put(child)

    def ask(request: bytes | None):
        if request is None:
            return None
        child = idle.get()
        try:
            return child.ask(request)
        finally:
            idle.put(child)

    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    threads = concurrent.futures.ThreadPoolExecutor(workers)
    try:
        for request in requests:
            waiting.append(threads.submit(ask, request))
            if len(waiting) > _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for child in children:
            child.close()  # before the threads are waited for: they may be reading from it
        threads.shutdown(cancel_futures=True)


class _Child:
    """A worker as its parent sees it. `ask` is called by one thread at a time."""

    def __init__(self, settings: tuple):
        # A task module that imports jax or tensorflow must not take the accelerator from this process.
        own = {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what goes wrong there is done again here, and said here
            env={**os.environ, **own},
        )
        self._first = pickle.dumps(settings)
        self._dead = False

    def ask(self, request: bytes) -> dict[str, Any] | None:
        if self._dead:
            return None
        try:
            self._process.stdin.write(self._first + request)
            self._process.stdin.flush()
            self._first = b""
            return pickle.load(self._process.stdout)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            self._dead = True
            return None

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):
            self._process.stdin.close()


def serve() -> None:
    """A worker's life: reads the settings, then jobs until the parent closes the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what task modules print must not get among the results
    requests = sys.stdin.buffer
    answer = Tokeniser(*pickle.load(requests))
    while True:
        try:
            asked = pickle.load(requests)
        except EOFError:
            return
        pickle.dump(answer(*asked), results, pickle.HIGHEST_PROTOCOL)
        results.flush()


class Tokeniser:
    """Does in another process what a `request` asks.

    Args:
      spec: of the vocabulary.
      recipe: which examples.
      modules: task modules, imported when a task comes by its name alone.
    """

    def __init__(self, spec: str, recipe: Recipe, modules: Sequence[str]):
        self._spec, self._recipe, self._modules = spec, recipe, list(modules)

    def __call__(self, name: str, expected: str, task: bytes | None) -> dict[str, Any] | None:
        """What `tokenise` makes of the task; None where this process cannot, or knows another version of it."""
        try:
            vocabulary = load_vocabulary(self._spec)
            while task is None and self._modules:
                importlib.import_module(self._modules.pop(0))
            card, source = find(name, vocabulary) if task is None else pickle.loads(task)
            same = fingerprint(card, source, vocabulary, self._recipe) == expected
            return tokenise(card, source, vocabulary, self._recipe) if same else None
        except Exception:  # the parent does it again, and says what went wrong
            return None
