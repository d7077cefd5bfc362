"""Natural language inference with three labels: SNLI, MNLI, FEVER-NLI and the three rounds of ANLI.

All are scored on public test splits, but MNLI, whose matched validation split is its test split. SNLI's pairs without
an agreed label are left out. FEVER-NLI is not in TensorFlow Datasets: its published files have a claim as `query`, its
evidence as `context`, and FEVER's names of the labels.

Leakage: ANLI was written against models trained on SNLI and MNLI, from the second round on also on FEVER-NLI and the
rounds before, so a model trained on these is at a disadvantage there by design.

Sources: Bowman et al. 2015 (arXiv 1508.05326); Williams et al. 2018 (arXiv 1704.05426); Nie et al. 2019 (arXiv
1811.07039); Nie et al. 2020 (arXiv 1910.14599).
"""

import os

from zeroprompt_jax.data import cards
from zeroprompt_jax.tasks import text_sets
from zeroprompt_jax.tasks.glue import MATCHED, NLI
from zeroprompt_jax.tasks.text_sets import OFFICIAL, TextSet, fields
from zeroprompt_jax.tasks.tfds_source import Dataset, Places

NAME = "nli"


def _set(name: str, dataset: Dataset, **options) -> TextSet:
    return TextSet(
        **{
            "name": name,
            "dataset": dataset,
            "type": "textual entailment",
            "text": fields("hypothesis", "premise"),
            "words": NLI,
            "splits": OFFICIAL,
            **options,
        }
    )


SETS = (
    _set("snli", Dataset("snli", "snli:1.1.0"), domain="image captions"),
    _set("mnli", Dataset("mnli", "multi_nli:1.1.0"), splits=MATCHED),
    _set(
        "fever_nli",
        Dataset(
            "fever_nli",
            renamed={"query": "hypothesis", "context": "premise"},
            home="the NLI-style FEVER files of github.com/easonnie/combine-FEVER-NSMN",
        ),
        classes=("SUPPORTS", "NOT ENOUGH INFO", "REFUTES"),
        domain="wikipedia",
    ),
    *(
        _set(
            f"anli_r{n}",
            Dataset(f"anli_r{n}", f"anli/r{n}:0.1.0", renamed={"premise": "context"}),
            text="hypothesis: {hypothesis} premise: {context}",
            classes=("e", "n", "c"),
            family="anli",
        )
        for n in (1, 2, 3)
    ),
)


def register(directory: str | os.PathLike | None = None, data_dir: str | os.PathLike | None = None) -> None:
    """Registers the tasks nli/NAME and the mixtures `nli` and `nli_anli`; arguments as of `glue.register`."""
    names = text_sets.register(NAME, SETS, Places.find(directory, data_dir))
    cards.register_mixture(NAME, names)
    cards.register_mixture(f"{NAME}_anli", [name for name in names if "anli" in name])


register()
