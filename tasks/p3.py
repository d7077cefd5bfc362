"""P3, the public pool of prompts: every template of every data set that T0 knows, as a task, and T0's mixtures.

The examples are read from a directory in P3's own layout, which the Hugging Face hub has as bigscience/P3: below
`data/` (or the directory itself) a folder DATASET_TEMPLATE of `train.tfrecord-00000-of-00001`, `info.train.json` and
`stats.train.json`, and the same of `validation` and `test`. A record has `inputs_pretokenized` and
`targets_pretokenized`, its T5 tokens, and the `answer_choices` of a template that has some. Where a split is in a
folder DATASET_TEMPLATE_score_eval alone, whose records are one answer choice each (`idx`, `is_correct`, `weight`),
these are put together again. The directory is given as an argument or in ZEROPROMPT_P3, and else looked for in the
Hugging Face cache. The names of the tasks are here without it.

T0's rules: a data set weighs as its training examples, at most 500,000, which are shared by its templates where it has
more; it is tested on the validation split, on the templates that ask for what it was made for, by ranking the choices.

Leakage: T0 holds out whole types of task (entailment, coreference, sentence completion, word sense). T0+ then trains on
HellaSwag, and T0++ on COPA, WiC and WSC too: what T0 is tested on is not unseen to them, so each model has a test
mixture of its own. RTE, CB, ANLI, Winogrande and Story Cloze are in none of the training mixtures. The public P3 has no
Story Cloze, as its licence asks for a form to be filled in: its tasks are in mixtures only where the directory has
them.

Source: Sanh et al. 2022 (arXiv 2110.08207); github.com/bigscience-workshop/t-zero.
"""

import collections
import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from zeroprompt_jax.data import cards
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.tasks import p3_names

NAME = "p3"
MOST = 500_000  # examples that a data set weighs
# What each model of T0's family trains on, by the marks of the table, and the mark of what it is tested on.
MODELS = {"t0": ("t0",), "t0p": ("t0", "t0p"), "t0pp": ("t0", "t0p", "t0pp")}
_HELD_OUT = ("textual entailment", "coreference resolution", "sentence completion", "word sense disambiguation")
_NOT_PUBLIC = ("story_cloze",)  # families
_SCORE = "_score_eval"
_UNLABELLED = "<NO LABEL>"
_READ = ("inputs_pretokenized", "targets_pretokenized", "answer_choices", "idx", "is_correct")
_OTHER = "other prompted task"


def register(directory: str | os.PathLike | None = None) -> None:
    """Registers the tasks p3/DATASET_TEMPLATE and the mixtures `p3`, and of each model of T0's family `p3_t0_train` and
    `p3_t0_eval` (`t0p` is T0+, `t0pp` T0++), `p3_t0_train_original` (only templates that ask for what the data set was
    made for) and `p3_bias`.

    Of a directory, only folders' and files' names are read now; folders that T0 does not know become tasks too.

    Args:
      directory: in P3's layout; the default is the environment's, else the Hugging Face cache.

    Raises:
      UserError: a directory is named that has no folder of P3. When examples are read, also that none is there.
    """
    root = _root(directory)
    held = {} if root is None else _folders(root)
    known, tasks = set(), collections.defaultdict(dict)
    for found in p3_names.SETS:
        cap = min(found.size, MOST // len(found.templates) if found.size > MOST else MOST)
        for template in found.templates:
            known.add(template.task)
            name = _register(template.task, found, template, root, held)
            if found.family in _NOT_PUBLIC and template.task not in held:
                continue
            tasks["all"][name] = 1.0
            for model, trains in MODELS.items():
                if found.trained in trains:
                    tasks[f"{model}_train"][name] = cap
                elif found.tested == "eval" and template.original:
                    tasks[f"{model}_eval"][name] = 1.0
            if found.trained == "t0" and template.original:
                tasks["t0_train_original"][name] = cap
            if found.tested == "bias":
                tasks["bias"][name] = 1.0
    for task in sorted(held.keys() - known):
        other = p3_names.PromptedSet(task, _OTHER, "-", "-", 0, task, ())
        tasks["all"][_register(task, other, p3_names.Template(task, False, False), root, held)] = 1.0
    cards.register_mixture(NAME, list(tasks.pop("all")))
    for mixture, rates in tasks.items():
        cards.register_mixture(f"{NAME}_{mixture}", rates)


def _register(
    task: str,
    found: p3_names.PromptedSet,
    template: p3_names.Template,
    root: pathlib.Path | None,
    held: Mapping[str, Mapping[str, tuple[str, ...]]],
) -> str:
    trains = found.trained != "-"
    card = cards.TaskCard(
        name=f"{NAME}/{task}",
        type=found.type,
        instructions=("",),  # an input says what is asked
        family=found.family,
        pool="held_out_type" if found.tested == "eval" and found.type in _HELD_OUT else "train",
        metrics=("accuracy",) if template.options else ("rougeL", "exact_match"),
    )
    files = held.get(task, {})
    splits = {"train": files.get("train"), "test": files.get("validation") or files.get("test")}
    splits = {split: names for split, names in splits.items() if names}
    if not splits:
        splits = {split: () for split in (["train", "test"] if trains or found.size else ["test"])}
    digest = hashlib.blake2b(repr(sorted(splits.items())).encode(), digest_size=12)
    for file in (root / name for names in splits.values() for name in names):
        stat = file.stat()
        digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}".encode())
    source = cards.Source(
        functools.partial(_examples, task, root, splits),
        fingerprint=f"p3 1 {digest.hexdigest()}",
        splits=tuple(splits),
        origin=str(root) if files else f"{root or f'${p3_names.ENVIRONMENT}'}, which lacks them",
    )
    cards.register(card, source, replace=True)
    return card.name


def _root(directory: str | os.PathLike | None) -> pathlib.Path | None:
    """The folder of P3's folders, or None where there is none and none was named."""
    if named := directory or os.environ.get(p3_names.ENVIRONMENT):
        root = pathlib.Path(named).expanduser()
        root = root / "data" if (root / "data").is_dir() else root
        if not any(root.glob("*/*.tfrecord*")):
            raise UserError(
                f"P3: {root} has no folder of P3, such as glue_mrpc_same_thing with train.tfrecord-00000-of-00001."
            )
        return root
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    hub = pathlib.Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser()
    snapshots = sorted((hub / "datasets--bigscience--P3" / "snapshots").glob("*/data"), key=lambda p: p.stat().st_mtime)
    return snapshots[-1] if snapshots else None


def _folders(root: pathlib.Path) -> dict[str, dict[str, tuple[str, ...]]]:
    """Task to split to its files, as paths below `root`; a split that only the scored folder has is that one's."""
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    with os.scandir(root) as folders:
        names = sorted(folder.name for folder in folders if folder.is_dir())
    # Scored folders come after their own, so that what is there already stays.
    for name in sorted(names, key=lambda n: n.endswith(_SCORE)):
        files = collections.defaultdict(list)
        for file in sorted(os.listdir(root / name)):
            split, dot, _ = file.partition(".tfrecord")
            if dot:
                files[split].append(f"{name}/{file}")
        for split, own in files.items():
            found.setdefault(name.removesuffix(_SCORE), {}).setdefault(split, tuple(own))
    return found


def _examples(
    task: str, root: pathlib.Path | None, splits: Mapping[str, tuple[str, ...]], split: str
) -> Iterator[Mapping[str, Any]]:
    files = [root / name for name in splits[split]] if root else []
    if not files:
        variable = p3_names.ENVIRONMENT
        where = f"{root} has no '{task}'" if root else f"{variable} is not set and the Hugging Face cache has no P3"
        raise UserError(
            f"P3: the examples of '{task}' are not here ({where}); get its folder with `hf download bigscience/P3 "
            f"--repo-type=dataset --include 'data/{task}*/*' --local-dir DIRECTORY` and name DIRECTORY in {variable}."
        )
    shards = re.search(r"-of-(\d+)$", files[0].name)
    if shards and int(shards[1]) != len(files):
        raise UserError(
            f"P3: {files[0].parent} has {len(files)} of the {int(shards[1])} files of '{split}'; get the others."
        )
    scored = files[0].parent.name.endswith(_SCORE)
    return _joined(_records(files)) if scored else _prompted(_records(files))


def _records(files: list[pathlib.Path]) -> Iterator[dict[str, list]]:
    """The features of each record, a list of values each; of those that are not read, as its tokens, an empty one."""
    import tensorflow as tf

    for file in files:
        try:
            for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
                features = tf.train.Example.FromString(record).features.feature
                made = {
                    key: getattr(f, f.WhichOneof("kind")).value if key in _READ else [] for key, f in features.items()
                }
                yield {k: [v.decode("utf-8") if isinstance(v, bytes) else v for v in vs] for k, vs in made.items()}
        except (tf.errors.OpError, AttributeError, TypeError) as e:
            raise UserError(f"P3: {file} cannot be read as examples ({str(e).splitlines()[0][:200]}).") from None


def _texts(record: Mapping[str, list]) -> tuple[str, str]:
    try:
        return record["inputs_pretokenized"][0].strip(), record["targets_pretokenized"][0].strip()
    except (KeyError, IndexError):
        raise UserError(f"P3: a record has no texts; it has {', '.join(sorted(record))}.") from None


def _prompted(records: Iterator[Mapping[str, list]]) -> Iterator[dict[str, Any]]:
    for record in records:
        given, target = _texts(record)
        options = list(dict.fromkeys(choice.strip() for choice in record.get("answer_choices", ())))
        if given and target and target != _UNLABELLED:
            ranked = {"options": options} if len(options) > 1 and target in options else {}
            yield {"input": given, "target": target, **ranked}


def _joined(records: Iterator[Mapping[str, list]]) -> Iterator[dict[str, Any]]:
    """Examples of records that are an answer choice each; those of one example follow each other."""
    example, key = {}, None
    for record in records:
        given, choice = _texts(record)
        if not example or record["idx"][0] != key:
            yield from _ranked(example)
            example, key = {"input": given, "options": [], "references": []}, record["idx"][0]
        example["options"].append(choice)
        if record["is_correct"][0]:
            example["references"].append(choice)
    yield from _ranked(example)


def _ranked(example: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if example and example["references"] and len(example["options"]) > 1:
        yield {**example, "target": example["references"][0]}


register()
