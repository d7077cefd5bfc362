"""Caching with Apache Beam, for more tasks than one machine tokenises in good time. Needs the extra `[beam]`.

The pipeline tokenises groups of tasks wherever its runner puts them, and leaves each group's results as one file in a
staging folder; the process that started it then writes the store from these, as it would from its own results.

Flags are Beam's own. Without any, the DirectRunner runs in this process. For Dataflow (`pip install
'apache-beam[gcp]'`): `--runner=DataflowRunner --project=P --region=R --temp_location=gs://BUCKET/tmp --setup_file=…`
or `--sdk_container_image=…`, so that workers have this package and the task modules, and a staging folder on gs://.
A SentencePiece vocabulary must lie under the same path on workers.
"""

import hashlib
import pickle
import sys
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from zeroprompt_jax.data.tokenise import Recipe, tokenise
from zeroprompt_jax.data.vocabulary import Vocabulary
from zeroprompt_jax.data.workers import Job, Tokeniser, request
from zeroprompt_jax.errors import UserError

_GROUP = 32  # tasks per file: few enough to spread, enough to pay for a file


class Beam:
    """An engine for `cache.build`.

    What finished pipelines and killed ones left in the staging folder is taken instead of being computed again, as far
    as the tasks' fingerprints and their grouping are the same; files are removed once the store has them.

    Args:
      staging: folder that this process and all workers can write: a local or shared path, or gs://BUCKET/FOLDER.
      flags: of the pipeline.

    Raises:
      UserError: Apache Beam is not installed.
    """

    def __init__(self, staging: str, flags: Sequence[str] = ()):
        try:
            import apache_beam  # noqa: F401
        except ImportError:
            raise UserError("Caching with Apache Beam needs it: pip install 'zeroprompt_jax[beam]'.") from None
        self._staging, self._flags = staging, list(flags)

    def __call__(
        self, jobs: Sequence[Job], vocabulary: Vocabulary, recipe: Recipe, modules: Sequence[str]
    ) -> Iterator[dict[str, Any]]:
        import apache_beam as beam
        from apache_beam.io.filesystems import FileSystems
        from apache_beam.options.pipeline_options import PipelineOptions

        groups = [jobs[i : i + _GROUP] for i in range(0, len(jobs), _GROUP)]
        paths = [FileSystems.join(self._staging, _name(group)) for group in groups]
        if not FileSystems.exists(self._staging):
            FileSystems.mkdirs(self._staging)
        missing = [
            (path, [request(job, modules) for job in group])
            for path, group in zip(paths, groups, strict=True)
            if not FileSystems.exists(path)
        ]
        if missing:
            work = _Group(vocabulary.spec, recipe, tuple(modules))
            with beam.Pipeline(options=PipelineOptions(self._flags)) as pipeline:
                # Reshuffled, because a runner may otherwise keep what was created together on one worker.
                _ = pipeline | beam.Create(missing) | beam.Reshuffle() | beam.FlatMap(work)
        left = 0
        for path, group in zip(paths, groups, strict=True):
            with FileSystems.open(path) as f:
                results = pickle.load(f)
            for job, result in zip(group, results, strict=True):
                left += result is None
                yield tokenise(job.card, job.source, vocabulary, recipe) if result is None else result
        if left:
            print(f"{left:,} of {len(jobs):,} tasks could not be tokenised by Beam's workers.", file=sys.stderr)
        if paths:
            FileSystems.delete(paths)


def _name(group: Sequence[Job]) -> str:
    told = "\n".join(f"{job.name} {job.fingerprint}" for job in group)
    return f"{hashlib.sha256(told.encode()).hexdigest()[:24]}.pickle"


class _Group:
    """Tokenises a group and writes its results, where a worker runs it. A task it cannot do is None there."""

    def __init__(self, spec: str, recipe: Recipe, modules: tuple[str, ...]):
        self._settings = (spec, recipe, modules)

    def __call__(self, item: tuple[str, list[bytes | None]]) -> tuple[()]:
        from apache_beam.io.filesystems import FileSystems

        path, requests = item
        answer = Tokeniser(*self._settings)
        results = [None if r is None else answer(*pickle.loads(r)) for r in requests]
        # Under a name of its own first: a runner may run one group twice at once.
        unfinished = f"{path}.{uuid.uuid4().hex}"
        with FileSystems.create(unfinished) as f:
            f.write(pickle.dumps(results, pickle.HIGHEST_PROTOCOL))
        FileSystems.rename([unfinished], [path])
        return ()
