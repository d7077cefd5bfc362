"""The procedural suite: prompted tasks composed of operations and arguments, made from a seed without any download.

A task is one operation on one tuple of arguments: "the past of the verb and the plural of the noun", "the letters without
k". The arguments stand in the instruction alone and all operations of a type share one input format, so that the input
does not tell what is asked. Importing this module registers every task and four mixtures:

- `procedural_train`: what is trained on;
- `procedural_seen_tasks`: a spread sample of those, for evaluation on their test examples;
- `procedural_unseen_tasks`: (operation, arguments) that training never shows, of types that it does. Every argument
  value occurs in training in another combination; what a task of `procedural_parts` asks together is never asked
  together in training. Half of these tasks bring wordings that training never uses;
- `procedural_unseen_types`: whole types that training never shows. `glossary` and `planner` ask for one part of each of
  two trained types, in rows that neither has; `travel` selects words of categories that no selection was trained on;
  `queue` asks trained questions about neighbours for people, in other words.

What it can show: that a method reads an instruction it has never seen and composes what it knows, that a training
pipeline works from end to end, and, since every answer is exact and every baseline known, how much each part of it
matters. What it cannot show: anything about natural language. Its vocabulary is about a thousand words, its wordings
come from templates, its tasks resemble each other far more than real tasks do, and its unseen types reuse skills
that are trained under other types. A method that wins here has not thereby been shown to win on real tasks.
"""

import itertools

from zeroprompt_jax.data import cards
from zeroprompt_jax.tasks import procedural_lists, procedural_parts, procedural_text
from zeroprompt_jax.tasks.procedural_spec import CODE_VERSION, SEED, Spec, examples, specs, wordings

TRAINED = procedural_parts.KINDS + procedural_lists.KINDS + procedural_text.KINDS
KINDS = TRAINED + procedural_parts.UNSEEN_KINDS + procedural_lists.UNSEEN_KINDS
# Examples per task: (train, test). Held-out tasks have some for adaptation; `procedural_train` does not hold them.
COUNTS = {"train": (80, 20), "held_out_task": (64, 64), "held_out_type": (64, 64)}
SEEN_TASKS_STRIDE = 7


def card_of(spec: Spec, unseen_wordings: bool) -> cards.TaskCard:
    """The card of a task; with `unseen_wordings` evaluation uses wordings that training never does."""
    instructions, unseen = wordings(spec)
    return cards.TaskCard(
        name=spec.name,
        type=spec.type,
        instructions=instructions,
        domain=DOMAINS[spec.type],
        family=spec.family,
        pool=spec.pool,
        input_template=": {input}",
        options=spec.operation.options(spec.arguments),
        held_out_instructions=unseen if unseen_wordings else (),
    )


def source_of(spec: Spec) -> cards.Source:
    """The examples of a task, made when asked for: the first are `train`, the next `test`, no input twice."""
    train, test = COUNTS[spec.pool]

    def split(name):
        begin, end = (0, train) if name == "train" else (train, train + test)
        return itertools.islice(examples(spec), begin, end)

    return cards.Source(split, f"procedural:{CODE_VERSION}:{SEED}:{train}+{test}:{spec.name}")


DOMAINS = {kind.name: kind.domain for kind in KINDS}
SPECS: dict[str, Spec] = {spec.name: spec for kind in KINDS for spec in specs(kind)}


def register() -> None:
    """Registers all tasks and mixtures; harmless when done twice."""
    pools: dict[str, list[str]] = {}
    for spec in SPECS.values():
        names = pools.setdefault(spec.pool, [])
        cards.register(card_of(spec, spec.pool != "train" and len(names) % 2 == 0), source_of(spec))
        names.append(spec.name)
    cards.register_mixture("procedural_train", pools["train"])
    cards.register_mixture("procedural_seen_tasks", pools["train"][::SEEN_TASKS_STRIDE])
    cards.register_mixture("procedural_unseen_tasks", pools["held_out_task"])
    cards.register_mixture("procedural_unseen_types", pools["held_out_type"])


register()
