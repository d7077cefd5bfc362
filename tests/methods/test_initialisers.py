"""Initialisers: each makes what it says, and refuses what it cannot."""

import cases
import jax
import numpy as np
import pytest
import tiny_t5
from cases import CONFIG
from safetensors.numpy import save_file

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods.base import Setting
from zeroprompt_jax.methods.initialisers import ClassLabels, File, SampledVocabulary, Text, Trained, Uniform
from zeroprompt_jax.methods.prompt import Prompt

D = CONFIG.emb_dim
TABLE = tiny_t5.params(CONFIG)["token_embedder"]["embedding"]
IDS = {"yes": [10], "no": [11, 12], "may be": [13, 14, 15], "": [], "far": [32]}
SETTING = Setting(
    CONFIG,
    ("a", "b", "c"),
    tiny_t5.params(CONFIG),
    encode=IDS.__getitem__,
    labels={"a": ("yes", "no"), "b": (), "c": ("no", "may be")},
)


def make(initialiser, N=3, P=6, setting=SETTING, seed=0):
    return np.asarray(initialiser.make(jax.random.key(seed), setting, (N, P, D)))


def rows_of_table(prompt):
    """The token ids whose embeddings these rows are: [N, P]; -1 where there is none."""
    same = (prompt[:, :, None] == TABLE).all(-1)
    return np.where(same.any(-1), same.argmax(-1), -1)


def test_uniform_fills_its_range():
    for initialiser, low, high in [(Uniform(), -0.5, 0.5), (Uniform(1.0, 3.0), 1, 3)]:
        prompt = make(initialiser, P=100)
        assert low <= prompt.min() < low + 0.01 * (high - low) and high - 0.01 * (high - low) < prompt.max() <= high
    assert Prompt().initialiser == Uniform() and np.abs(make(Uniform()) - make(Uniform(), seed=1)).max() > 0.1


def test_sampled_vocabulary_is_rows_of_different_ordinary_tokens():
    ids = np.stack([rows_of_table(make(SampledVocabulary(), P=20, seed=seed)) for seed in range(20)])
    assert ids.min() == 3 and ids.max() == 31  # never padding, EOS or unknown; up to the end of a small vocabulary
    assert all(len(set(row)) == 20 for row in ids.reshape(-1, 20))
    assert not np.array_equal(ids[0, 0], ids[0, 1])  # each task draws its own
    ids = rows_of_table(make(SampledVocabulary(first=12, skip=5), P=7))
    assert (np.sort(ids) == np.arange(5, 12)).all()
    with pytest.raises(UserError, match="cannot draw 8 different tokens: there are 7 ids from 5 to 11"):
        make(SampledVocabulary(first=12, skip=5), P=8)
    with pytest.raises(UserError, match="from skip 3 up to first 3; there are none"):
        SampledVocabulary(first=3)


def test_class_labels_are_means_of_their_tokens_and_the_rest_falls_back():
    fallback = Uniform(5.0, 6.0)
    prompt = make(ClassLabels(fallback=fallback))
    mean = lambda *ids: TABLE[list(ids)].mean(0)
    np.testing.assert_allclose(prompt[0, :2], [mean(10), mean(11, 12)], rtol=1e-6)
    np.testing.assert_allclose(prompt[2, :2], [mean(11, 12), mean(13, 14, 15)], rtol=1e-6)
    rest = np.stack([prompt[0, 2:], prompt[2, 2:]])
    assert (rest >= 5).all() and (prompt[1] >= 5).all()  # task b has no options
    assert (rows_of_table(make(ClassLabels())[:, 2:]) >= 3).all()  # the default fallback
    shared = make(ClassLabels(fallback=fallback), N=1)  # all tasks' labels, each once
    np.testing.assert_allclose(shared[0, :3], [mean(10), mean(11, 12), mean(13, 14, 15)], rtol=1e-6)
    assert (shared[0, 3:] >= 5).all()
    given = make(ClassLabels(("may be",), fallback))
    np.testing.assert_allclose(given[:, 0], [mean(13, 14, 15)] * 3, rtol=1e-6)


def test_class_labels_mistakes():
    with pytest.raises(UserError, match="ClassLabels has 2 labels for a prompt of 1 vectors"):
        make(ClassLabels(fallback=Uniform()), P=1)
    with pytest.raises(UserError, match="ClassLabels finds no labels"):
        make(ClassLabels(), setting=Setting(CONFIG, ("a",), SETTING.backbone, SETTING.encode), N=1)
    with pytest.raises(UserError, match="The text '' has no tokens"):
        make(ClassLabels(("yes", "")))
    with pytest.raises(UserError, match="ClassLabels.labels is the text 'yes'"):
        ClassLabels("yes")


def test_text_is_repeated_or_cut():
    assert (rows_of_table(make(Text("may be"), P=7)) == [13, 14, 15, 13, 14, 15, 13]).all()
    assert (rows_of_table(make(Text("may be"), P=2)) == [13, 14]).all()
    with pytest.raises(UserError, match="The text '' has no tokens"):
        make(Text(""))
    with pytest.raises(UserError, match="The text 'far' has token id 32, and the backbone has embeddings for 32 ids"):
        make(Text("far"))
    with pytest.raises(UserError, match="there is no vocabulary here"):
        make(Text("yes"), setting=Setting(CONFIG, backbone=SETTING.backbone))
    with pytest.raises(UserError, match="there is no backbone here"):
        make(Text("yes"), setting=Setting(CONFIG, encode=SETTING.encode))


@pytest.fixture
def saved(tmp_path):
    """Writes an array as .npy and as the tensor of a safetensors file; returns both initialisers."""

    def write(array, tensor="prompt", **others):
        np.save(tmp_path / "prompt.npy", array)
        save_file({tensor: array, **others}, tmp_path / "prompt.safetensors")
        return File(str(tmp_path / "prompt.npy")), Trained(str(tmp_path / "prompt.safetensors"))

    return write


PROMPT = np.random.default_rng(0).normal(size=(6, D)).astype(np.float32)


def test_a_file_and_a_trained_prompt_start_every_task(saved):
    for given in ({}, {"tensor": "any"}, {"other": PROMPT[:1]}):
        for initialiser in saved(PROMPT, **given):
            prompt = make(initialiser)
            assert prompt.dtype == np.float32 and (prompt == PROMPT).all() and len(prompt) == 3
    for initialiser in saved(PROMPT.astype(np.float64)):
        assert make(initialiser).dtype == np.float32


def test_mistakes_of_files(saved, tmp_path):
    for initialiser in saved(PROMPT):
        with pytest.raises(UserError, match=r"holds shape \[6, 16\]; this prompt has length × width \[5, 16\]"):
            make(initialiser, P=5)
    broken = PROMPT.copy()
    broken[2, 3:5] = np.nan, np.inf
    for initialiser in saved(broken):
        with pytest.raises(UserError, match="holds 2 values that are NaN or infinite"):
            make(initialiser)
    for initialiser in saved(np.ones((6, D), np.int32)):
        with pytest.raises(UserError, match="values of type int32, not floating-point"):
            make(initialiser)
    with pytest.raises(UserError, match="holds no tensor 'prompt', only a, b"):
        make(saved(PROMPT, "a", b=PROMPT)[1])
    for kind, name in ((File, "NumPy's .npy format"), (Trained, "not a safetensors file")):
        with pytest.raises(UserError, match="there is no file 'nowhere'"):
            make(kind("nowhere"))
        for content in (b"", b"nonsense that is no file of either kind"):
            (tmp_path / "bad").write_bytes(content)
            with pytest.raises(UserError, match=name):
                make(kind(str(tmp_path / "bad")))
    np.savez(tmp_path / "several.npz", a=PROMPT)
    with pytest.raises(UserError, match="an archive of several arrays"):
        make(File(str(tmp_path / "several.npz")))


def test_mistakes_show_before_anything_compiles():
    with pytest.raises(UserError, match="there is no file 'nowhere'"):
        jax.eval_shape(lambda: Prompt(6, initialiser=File("nowhere")).init(jax.random.key(0), cases.setting()))
