import numpy as np
import pytest

from zeroprompt_jax.data import cache, cards, mixture, seqio_bridge
from zeroprompt_jax.data.batches import EvalSet, Features
from zeroprompt_jax.data.vocabulary import load_vocabulary
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.evaluation import metrics

FEATURES = Features(inputs=64, targets=10)


@pytest.fixture
def seqio(monkeypatch):
    import seqio

    for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
        monkeypatch.setattr(registry, "_REGISTRY", {})
    return seqio


@pytest.fixture(params=["bytes", "procedural", "t5"])
def vocabulary(request):
    if request.param != "t5":
        return load_vocabulary(request.param)
    return load_vocabulary(f"{request.getfixturevalue('shared_data')}/t5_vocab.model:100")


def texts_task(seqio, name, vocabulary, texts, preprocessors=None, keep_text=True):
    """A task as users write them: text in, SeqIO's own tokenisation."""
    import tensorflow as tf

    def dataset(split, shuffle_files, seed=None):
        del split, shuffle_files, seed
        columns = {"inputs": [a for a, _ in texts], "targets": [b for _, b in texts]}
        return tf.data.Dataset.from_tensor_slices(columns)

    feature = seqio.Feature(vocabulary=vocabulary.to_seqio(), add_eos=True)
    drop = [] if keep_text else [lambda d: d.map(lambda e: {k: e[k] for k in ("inputs", "targets")})]
    return seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset, splits=("train", "test")),
        preprocessors=preprocessors or [seqio.preprocessors.tokenize, *drop, seqio.preprocessors.append_eos],
        output_features={"inputs": feature, "targets": feature},
        metric_fns=[],
    )


def test_vocabularies_agree_with_seqios(seqio, vocabulary):
    theirs = vocabulary.to_seqio()
    assert theirs.vocab_size == vocabulary.size
    words = "hello <extra_id_0> world <extra_id_3>!" if "t5" in vocabulary.spec else "hello world!"
    for text in [words, "  a é 日本 {x}\n b ", "", "12.5%"]:
        ids = vocabulary.encode(text)
        assert ids == list(theirs.encode(text)) == theirs.encode_tf(text).numpy().tolist()
        if "<extra" not in text:
            assert vocabulary.decode([*ids, 1, 5, 6]) == theirs.decode([*ids, 1, 5, 6])


def test_both_routes_give_the_same_tokens(seqio, tmp_path, register, vocabulary):
    names = register(2)
    store = cache.build(tmp_path, names, vocabulary, progress=False)
    lengths = {"inputs": 46, "targets": 4}  # so short that some inputs and targets are cut
    for name in names:
        task = seqio_bridge.to_seqio(name, vocabulary)
        assert seqio_bridge.to_seqio(name, vocabulary) is task is seqio.TaskRegistry.get(name)
        dataset = task.get_dataset(lengths, "test", shuffle=False)
        converted = seqio.EncDecFeatureConverter(pack=False)(dataset, lengths)
        rows = list(converted.as_numpy_iterator())
        ours = next(EvalSet(store, [name], "test", Features(**lengths), wordings="train").batches(len(rows)))
        for key in ("encoder_input_tokens", "decoder_target_tokens", "decoder_input_tokens", "decoder_loss_weights"):
            np.testing.assert_array_equal(ours[key], np.stack([r[key] for r in rows]), key)


def test_rows_tell_their_task_and_instruction(seqio, tmp_path, register):
    from zeroprompt_jax.data.seqio_converter import FeatureConverter

    v, names = load_vocabulary("procedural"), register(3)
    store = cache.build(tmp_path, names, v, progress=False)
    cards.register_mixture("all", names)
    mixture = seqio_bridge.mixture_to_seqio("all", v, ["task", "instructions"])
    assert seqio_bridge.card_names("all") == tuple(names)
    # so short that some inputs and instructions are cut
    lengths = {"inputs": 6, "targets": 4, "instructions": 9}
    features = Features(**lengths, instruction_limit=8, instruct_inputs=False)
    rows = EvalSet(store, names, "test", features, wordings="train").batches(15)
    wanted = next(rows)
    for places in (dict(zip(names, (2, 0, 1))), dict(zip(names, ((2, 3), (0, 0), (1, 0))))):
        converter = FeatureConverter(places, instructions=True, pack=False)
        made = []
        for name in names:
            dataset = seqio.TaskRegistry.get(name).get_dataset(lengths, "test", shuffle=False)
            made += converter(dataset, lengths).as_numpy_iterator()
        for key in ("encoder_input_tokens", "decoder_target_tokens", "decoder_input_tokens", "instruction_tokens"):
            np.testing.assert_array_equal(wanted[key], np.stack([row[key] for row in made]), key)
        told = [places[store.tasks[i]] for i in wanted["task_ids"]]
        np.testing.assert_array_equal(np.stack([row["task_ids"] for row in made]), np.array(told, np.int32), strict=True)
    # A mixture's rows tell it too, and what is not read need not be told.
    mixed = mixture.get_dataset(lengths, "train", num_epochs=1, shuffle=False)
    found = {tuple(row["task_ids"]) for row in converter(mixed, lengths).as_numpy_iterator()}
    assert found == {(2, 3), (0, 0), (1, 0)}
    plain = next(FeatureConverter(pack=True)(mixed, {**lengths, "inputs": 20, "targets": 20}).as_numpy_iterator())
    assert "task_ids" not in plain and plain["encoder_segment_ids"].max() > 1


def test_rows_that_do_not_tell_what_is_read_are_refused(seqio, register):
    import tensorflow as tf

    from zeroprompt_jax.data.seqio_converter import FeatureConverter

    v, (name, other) = load_vocabulary("bytes"), register(2)
    lengths = {"inputs": 64, "targets": 8}
    with pytest.raises(UserError, match="reads 'task' of each row, so rows cannot be packed"):
        FeatureConverter({name: 0}, pack=True)
    with pytest.raises(UserError, match="FeatureConverter.places names no task"):
        FeatureConverter({}, pack=False)
    silent = seqio_bridge.to_seqio(name, v).get_dataset(lengths, "test")
    with pytest.raises(UserError, match=r"reads 'task' of each row.*features=\['task'\]"):
        FeatureConverter({name: 0}, pack=False)(silent, lengths)
    with pytest.raises(UserError, match="no length for 'instructions'"):
        FeatureConverter(instructions=True, pack=False)(silent, lengths)
    told = seqio_bridge.to_seqio(other, v, ["task"]).get_dataset(lengths, "test")
    with pytest.raises(tf.errors.InvalidArgumentError, match="no place for the task.*pick_1"):
        next(FeatureConverter({name: 0}, pack=False)(told, lengths).as_numpy_iterator())


def test_seqios_evaluator_measures_with_the_cards_metrics(seqio, register):
    v, [name] = load_vocabulary("bytes"), register(1)
    task = seqio_bridge.to_seqio(name, v, metrics=metrics.compute)
    evaluator = seqio.Evaluator(name, seqio.EncDecFeatureConverter(pack=False), "test", logger_cls=())
    answers = [example["targets_pretokenized"].numpy().decode() for example in task.get_dataset(None, "test", shuffle=False)]

    def score(texts):
        tokens = [[*v.encode(text), 1, *[0] * 20][:20] for text in texts]
        found, _ = evaluator.evaluate(compute_metrics=True, predict_fn=lambda ds: list(enumerate(tokens)))
        return found.result()[name]

    assert score(answers) == {"exact_match": 1.0}
    # A second reference counts as well, and an answer that is none does not.
    assert score([answers[0].upper(), *["none"] * 4]) == {"exact_match": 0.2}
    evaluator.close()
    assert not seqio.Evaluator(seqio_bridge.to_seqio(register(2)[1], v).name, None, "test", logger_cls=()).eval_tasks


@pytest.mark.parametrize("keep_text", [True, False])
def test_existing_seqio_tasks_are_cached(seqio, tmp_path, vocabulary, keep_text):
    texts = [("say stone", "stone"), ("say the river", "river")]
    texts_task(seqio, "theirs", vocabulary, texts, keep_text=keep_text)
    store = cache.build(tmp_path, ["theirs"], vocabulary, progress=False)
    assert (store.size("theirs", "train"), store.size("theirs", "test")) == (2, 2)
    batch = next(EvalSet(store, ["theirs"], "test", FEATURES).batches(2))
    for row, (source, _) in enumerate(texts):
        expected = [*vocabulary.encode(source), 1]
        assert batch["encoder_input_tokens"][row].tolist() == expected + [0] * (64 - len(expected))
    assert [e.references for e in EvalSet(store, ["theirs"], "test", FEATURES).examples] == [("stone",), ("river",)]


def test_another_vocabularys_tokens_are_not_taken(seqio, tmp_path):
    ours, theirs = load_vocabulary("bytes"), load_vocabulary("procedural")
    texts_task(seqio, "with_text", theirs, [("say stone", "stone")])
    store = cache.build(tmp_path, ["with_text"], ours, progress=False)
    assert store.gather([0], "train", [0], "inputs")[0].tolist() == ours.encode("say stone")
    texts_task(seqio, "without_text", theirs, [("say stone", "stone")], keep_text=False)
    with pytest.raises(UserError, match="'without_text'.*another vocabulary"):
        cache.build(tmp_path, ["without_text"], ours, progress=False)


def test_seqio_tasks_are_cached_again_only_when_their_code_changes(seqio, tmp_path):
    v = load_vocabulary("bytes")

    def shout(dataset):
        import tensorflow as tf

        return dataset.map(lambda e: {k: tf.strings.upper(t) for k, t in e.items()})

    finish = [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]
    texts_task(seqio, "theirs", v, [("a", "b")], preprocessors=finish)
    first = cache.build(tmp_path, ["theirs"], v, progress=False).fingerprint("theirs")
    assert cache.build(tmp_path, ["theirs"], v, progress=False).fingerprint("theirs") == first
    seqio.TaskRegistry.remove("theirs")
    texts_task(seqio, "theirs", v, [("a", "b")], preprocessors=[shout, *finish])
    store = cache.build(tmp_path, ["theirs"], v, progress=False)
    assert store.fingerprint("theirs") != first
    assert v.decode(store.gather([0], "train", [0], "inputs")[0]) == "A"


def test_mixtures_and_their_rates(seqio):
    v = load_vocabulary("bytes")
    for name in "abc":
        texts_task(seqio, name, v, [("x", "y")])
    seqio.MixtureRegistry.add("inner", [("a", 1), ("b", 3)])
    seqio.MixtureRegistry.add("outer", [("inner", 2), ("c", lambda task: 5)])
    rates = seqio_bridge.mixture_from_seqio("outer")
    assert rates == pytest.approx({"a": 0.5, "b": 1.5, "c": 5.0})
    shares = mixture.rates({t: 1 for t in rates}, "explicit", explicit=rates)
    assert shares["c"] == pytest.approx(5 / 7)
    with pytest.raises(UserError, match="Did you mean 'outer'"):
        seqio_bridge.mixture_from_seqio("outter")


def test_a_mixture_goes_to_seqio_with_its_rates(seqio, register):
    v, names = load_vocabulary("bytes"), register(3)
    cards.register_mixture("some-of/them", {names[0]: 3.0, names[2]: 1.0})
    made = seqio_bridge.mixture_to_seqio("some-of/them", v)
    assert made is seqio.MixtureRegistry.get("some_of_them") and made is seqio_bridge.mixture_to_seqio("some-of/them", v)
    assert seqio_bridge.mixture_from_seqio("some_of_them") == {names[0]: 3.0, names[2]: 1.0}
    assert len(list(made.get_dataset({"inputs": 16, "targets": 8}, "train", num_epochs=1).take(2))) == 2
    cards.register_mixture("some-of_them", [names[1]])
    with pytest.raises(UserError, match="seqio already has another mixture named 'some_of_them'"):
        seqio_bridge.mixture_to_seqio("some-of_them", v)


def test_mistakes_are_named(seqio, register):
    v = load_vocabulary("bytes")
    [name] = register(1)
    seqio_bridge.to_seqio(name, v)
    with pytest.raises(UserError, match="already has another task named 'pick_0'"):
        seqio_bridge.to_seqio(name, load_vocabulary("bytes:0"))
    with pytest.raises(UserError, match="already has another task named 'pick_0'"):
        seqio_bridge.to_seqio(name, v, ["task"])
    with pytest.raises(UserError, match="Did you mean 'instructions'"):
        seqio_bridge.to_seqio(name, v, ["instruction"])
    with pytest.raises(UserError, match="Did you mean 'pick_0'"):
        seqio_bridge.card_names("pick_00")
    texts_task(seqio, "theirs", v, [("x", "y")])
    with pytest.raises(UserError, match="'theirs' is no task card's"):
        seqio_bridge.card_names("theirs")
    with pytest.raises(UserError, match="Did you mean 'pick_0'"):
        seqio_bridge.card_from_seqio("pick_00", v)
    card = cards.TaskCard(name="with-hyphen/slash", type="t", instructions=("Do.",))
    cards.register(card, cards.Source(lambda split: [{"input": "x", "target": "y"}], "1"))
    assert seqio_bridge.to_seqio("with-hyphen/slash", v).name == "with_hyphen_slash"
