"""P3: the table of names, T0's mixtures, and records written in P3's own layout."""

import json
import re

import pytest

from zeroprompt_jax.data import cards
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.tasks import p3, p3_names


@pytest.fixture(autouse=True)
def registry(monkeypatch, tmp_path):
    monkeypatch.setattr(cards, "_TASKS", {})
    monkeypatch.setattr(cards, "_MIXTURES", {})
    monkeypatch.delenv(p3_names.ENVIRONMENT, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no hub"))


def write(folder, split, records):
    """Records of lists of text and whole numbers, in a TFRecord file with its two JSON files beside it."""
    import tensorflow as tf

    folder.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / f"{split}.tfrecord-00000-of-00001")) as file:
        for record in records:
            features = {}
            for key, values in record.items():
                if isinstance(values[0], str):
                    encoded = tf.train.BytesList(value=[v.encode() for v in values])
                    features[key] = tf.train.Feature(bytes_list=encoded)
                else:
                    features[key] = tf.train.Feature(int64_list=tf.train.Int64List(value=values))
            file.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    info = {"num_shards": 1, "features": {key: {"dtype": "string", "shape": [None]} for key in records[0]}}
    (folder / f"info.{split}.json").write_text(json.dumps(info))
    (folder / f"stats.{split}.json").write_text(json.dumps({"examples": len(records)}))


def prompted(given, wanted, choices=()):
    record = {
        "inputs_pretokenized": [given],
        "targets_pretokenized": [f"\n{wanted}"],
        "inputs": [5, 1],
        "targets": [6, 1],
    }
    return {**record, **({"answer_choices": list(choices)} if choices else {})}


def scored(number, given, choice, correct):
    record = {
        "idx": [number, 0],
        "is_correct": [correct],
        "inputs_pretokenized": [given],
        "targets_pretokenized": [choice],
    }
    return {**record, "inputs": [5], "targets": [6, 1]}


def rendered(task, split):
    return [cards.render(cards.card(task), e) for e in cards.source(task).examples(split)]


def test_the_table_names_every_data_set_and_template():
    assert len(p3_names.SETS) >= 62 and len({s.dataset for s in p3_names.SETS}) == len(p3_names.SETS)
    tasks = [t.task for s in p3_names.SETS for t in s.templates]
    assert len(tasks) == len(set(tasks)) > 500 and all(s.templates for s in p3_names.SETS)
    assert all(re.fullmatch(r"[\w.]+", task) for task in tasks)
    assert {"glue_mrpc_same_thing", "ai2_arc_ARC_Challenge_heres_a_problem", "anli_GPT_3_style_r3"} <= set(tasks)


def test_mixtures_follow_the_rules_of_t0():
    p3.register()
    family = lambda mixture: {cards.card(t).family for t in cards.mixture(f"p3_{mixture}")}
    kinds = lambda mixture: {cards.card(t).type for t in cards.mixture(f"p3_{mixture}")}
    for model in p3.MODELS:  # none is trained on a data set that it is tested on
        assert not family(f"{model}_train") & family(f"{model}_eval")
    assert not kinds("t0_train") & kinds("t0_eval")
    trained = [set(cards.mixture(f"p3_{model}_train")) for model in ("t0", "t0p", "t0pp")]
    assert trained[0] < trained[1] < trained[2]
    added = [family(b) - family(a) for a, b in (("t0_train", "t0p_train"), ("t0p_train", "t0pp_train"))]
    assert "hellaswag" in added[0] and {"copa", "wic", "wsc", "boolq", "multirc", "record"} == added[1]
    # What the public P3 lacks is in no mixture.
    assert family("t0_eval") == {"rte", "cb", "anli", "wsc", "winogrande", "copa", "hellaswag", "wic"}
    assert family("t0pp_eval") == {"rte", "cb", "anli", "winogrande"}
    assert not set(cards.mixture("p3_bias")) & trained[2]


def test_a_data_set_weighs_as_its_examples_up_to_the_cap():
    p3.register()
    rates = cards.mixture("p3_t0_train")
    small = [t for t in rates if cards.card(t).family == "mrpc"]
    large = [t for t in rates if cards.card(t).family == "gigaword"]
    assert {rates[t] for t in small} == {3668.0} and {rates[t] for t in large} == {float(500_000 // len(large))}
    original = cards.mixture("p3_t0_train_original")
    assert original.items() < rates.items()


def test_records_are_read_as_published(tmp_path):
    task, free = "glue_mrpc_same_thing", "xsum_DOC_tldr"
    yes = prompted(" Same? ", "yes", ("no", "yes"))
    write(tmp_path / "data" / task, "train", [yes, prompted("Same?", "<NO LABEL>", ("no", "yes")), yes])
    write(tmp_path / "data" / task, "validation", [prompted("Now?", "no", ("no", "yes"))])
    write(tmp_path / "data" / task, "test", [prompted("Hidden?", "<NO LABEL>", ("no", "yes"))])
    write(tmp_path / "data" / free, "train", [prompted("A text.", "Short.")])
    p3.register(tmp_path)
    assert cards.source(f"p3/{task}").splits == ("train", "test") and cards.source(f"p3/{free}").splits == ("train",)
    first, second = rendered(f"p3/{task}", "train")
    assert first == second and (first.input, first.target, first.options) == ("Same?", "yes", ("no", "yes"))
    assert [r.input for r in rendered(f"p3/{task}", "test")] == ["Now?"]
    assert rendered(f"p3/{free}", "train")[0].options == () and cards.card(f"p3/{free}").metrics[0] == "rougeL"
    before = cards.source(f"p3/{task}").fingerprint
    write(tmp_path / "data" / task, "train", [yes])
    p3.register(tmp_path)
    assert cards.source(f"p3/{task}").fingerprint != before


def test_p3s_layout_is_seqios_cache(tmp_path, monkeypatch):
    """Records that SeqIO wrote into a cache of its own, which is how P3 was made, are read as SeqIO itself reads them."""
    import numpy as np
    import seqio
    import tensorflow as tf

    monkeypatch.setattr(seqio.TaskRegistry, "_REGISTRY", {})
    monkeypatch.setattr(seqio.utils, "_GLOBAL_CACHE_DIRECTORIES", [str(tmp_path / "data")])
    text, texts, ids, number = ([], "string"), ([None], "string"), ([None], "int32"), ([], "float32")
    features = {"inputs": ids, "inputs_pretokenized": text, "targets": ids, "targets_pretokenized": text}
    row = {"inputs": np.array([5, 1], np.int32), "targets": np.array([6, 7, 1], np.int32)}
    asked = [("Same?\nYes, né.", "oui"), ("Again?", "non")]
    plain = [{**row, "inputs_pretokenized": q, "targets_pretokenized": a, "answer_choices": ["oui", "non"]} for q, a in asked]
    judged = [
        {**row, "inputs_pretokenized": "Q", "targets_pretokenized": a, "idx": np.array([3, i], np.int32), "weight": 1.0}
        | {"is_correct": int(i == 1)}  # a bool is kept as a whole number
        for i, a in enumerate(("True", "False"))
    ]
    extra = {"idx": ids, "is_correct": ([], "bool"), "weight": number}
    written = {
        "glue_mrpc_same_thing": ("train", plain, features | {"answer_choices": texts}),
        "super_glue_rte_GPT_3_style_score_eval": ("validation", judged, features | extra),
    }
    read = {}
    for name, (split, rows, kinds) in written.items():
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        with tf.io.TFRecordWriter(str(folder / f"{split}.tfrecord-00000-of-00001")) as file:
            for example in rows:
                file.write(seqio.dict_to_tfexample(example).SerializeToString())
        described = {key: {"shape": shape, "dtype": dtype} for key, (shape, dtype) in kinds.items()}
        info = {"num_shards": 1, "features": described, "seqio_version": seqio.__version__}
        (folder / f"info.{split}.json").write_text(json.dumps(info))
        (folder / f"stats.{split}.json").write_text(json.dumps({"examples": len(rows)}))
        tokens = seqio.Feature(vocabulary=seqio.PassThroughVocabulary(8), add_eos=False)
        task = seqio.TaskRegistry.add(
            name,
            source=seqio.FunctionDataSource(lambda split, shuffle_files=False, seed=None: None, splits=(split,)),
            preprocessors=[seqio.CacheDatasetPlaceholder()],
            output_features={"inputs": tokens, "targets": tokens},
        )
        (folder / "COMPLETED").touch()
        dataset = task.get_dataset(None, split, use_cached=True, shuffle=False)
        read[name] = [
            (x["inputs_pretokenized"].decode(), x["targets_pretokenized"].decode()) for x in dataset.as_numpy_iterator()
        ]
    p3.register(tmp_path)
    made = rendered("p3/glue_mrpc_same_thing", "train")
    assert [(r.input, r.target) for r in made] == read["glue_mrpc_same_thing"] == asked
    assert {r.options for r in made} == {("oui", "non")}
    (joined,) = rendered("p3/super_glue_rte_GPT_3_style", "test")
    assert [(joined.input, option) for option in joined.options] == read["super_glue_rte_GPT_3_style_score_eval"]
    assert joined.target == "False"


def test_scored_choices_are_put_together_again(tmp_path):
    task = "super_glue_rte_GPT_3_style"
    records = [
        scored(7, "Q1", " True", 0),
        scored(7, "Q1", " False", 1),
        scored(8, "Q2", "True", 1),
        scored(8, "Q2", "False", 0),
    ]
    write(tmp_path / f"{task}_score_eval", "validation", records)
    p3.register(tmp_path)
    first, second = rendered(f"p3/{task}", "test")
    assert (first.input, first.target, first.options) == ("Q1", "False", ("True", "False")) and second.target == "True"
    write(tmp_path / task, "validation", [prompted("Plain", "True", ("True", "False"))])
    p3.register(tmp_path)
    assert [r.input for r in rendered(f"p3/{task}", "test")] == ["Plain"]
    assert f"p3/{task}_score_eval" not in cards.task_names()


def test_what_is_not_public_is_in_a_mixture_where_it_is_held(tmp_path):
    task = "story_cloze_2016_Choose_Story_Ending"
    write(tmp_path / f"{task}_score_eval", "validation", [scored(1, "Q", c, int(c == "b")) for c in "ab"])
    p3.register(tmp_path)
    for mixture in ("p3", "p3_t0_eval", "p3_t0pp_eval"):
        assert [t for t in cards.mixture(mixture) if "story_cloze" in t] == [f"p3/{task}"]


def test_folders_that_t0_does_not_know_become_tasks(tmp_path):
    write(tmp_path / "mine_my_template", "train", [prompted("What?", "That.")])
    p3.register(tmp_path)
    assert rendered("p3/mine_my_template", "train")[0].target == "That."
    assert "p3/mine_my_template" in cards.mixture("p3").keys() - cards.mixture("p3_t0pp_train").keys()


def test_the_hugging_face_cache_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "datasets--bigscience--P3" / "snapshots" / "abc" / "data" / "imdb_Writer_Expressed_Sentiment"
    write(folder, "train", [prompted("Good?", "positive", ("negative", "positive"))])
    p3.register()
    assert rendered("p3/imdb_Writer_Expressed_Sentiment", "train")[0].target == "positive"


def test_mistakes_are_one_sentence(tmp_path):
    p3.register()
    with pytest.raises(
        UserError, match=r"'xsum_DOC_tldr' are not here .*hf download bigscience/P3 .*data/xsum_DOC_tldr\*/"
    ):
        rendered("p3/xsum_DOC_tldr", "train")
    with pytest.raises(UserError, match="has no folder of P3"):
        p3.register(tmp_path)
    folder = tmp_path / "xsum_DOC_tldr"
    folder.mkdir()
    (folder / "train.tfrecord-00000-of-00001").write_bytes(b"no record at all")
    p3.register(tmp_path)
    with pytest.raises(UserError, match="train.tfrecord-00000-of-00001 cannot be read as examples"):
        rendered("p3/xsum_DOC_tldr", "train")
    (folder / "train.tfrecord-00000-of-00001").rename(folder / "train.tfrecord-00001-of-00003")
    p3.register(tmp_path)
    with pytest.raises(UserError, match="xsum_DOC_tldr has 1 of the 3 files of 'train'; get the others"):
        rendered("p3/xsum_DOC_tldr", "train")
    (folder / "train.tfrecord-00001-of-00003").unlink()
    write(folder, "train", [{"inputs": [5, 1], "targets": [6, 1]}])
    p3.register(tmp_path)
    with pytest.raises(UserError, match="a record has no texts; it has inputs, targets"):
        rendered("p3/xsum_DOC_tldr", "train")
