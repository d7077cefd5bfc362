"""Masking: the shares, what is never chosen, and that a batch depends on seed and number alone."""

import numpy as np
import pytest

from zeroprompt_jax.data.encoder_vocabulary import words_vocabulary
from zeroprompt_jax.data.entailment import RowStream, join, rows
from zeroprompt_jax.data.masking import MaskedStream, masked
from zeroprompt_jax.data.reformulation import Reformulation
from zeroprompt_jax.errors import UserError
from zeroprompt_jax.tasks import plain_text

WORDS = words_vocabulary([f"w{i}" for i in range(200)] + ["it", "was", "great", "bad", "."])
CHUNKS = np.random.default_rng(0).integers(5, WORDS.size, (64, 62)).astype(np.int32)


def test_shares():
    stream = MaskedStream(CHUNKS, WORDS, 64)
    batches = [stream.batch(n) for n in range(8)]
    tokens, targets, weights = (
        np.concatenate([b[name] for b in batches]) for name in ("encoder_input_tokens", "mlm_targets", "mlm_weights")
    )
    chosen = weights > 0
    assert abs(chosen[:, 1:-1].mean() - 0.15) < 0.005  # 31,744 draws: a standard deviation is 0.002
    assert not chosen[:, [0, -1]].any()
    np.testing.assert_array_equal(tokens[~chosen], targets[~chosen])
    hidden, kept = tokens[chosen] == WORDS.mask_id, tokens[chosen] == targets[chosen]
    assert abs(hidden.mean() - 0.8) < 0.02 and abs(kept.mean() - 0.1) < 0.02
    other = tokens[chosen & (tokens != WORDS.mask_id) & (tokens != targets)]
    assert len(set(other.tolist())) > 100 and not set(other.tolist()) & WORDS.marks
    # Every chunk once an epoch, and other tokens hidden in the next.
    assert sorted(map(bytes, batches[0]["mlm_targets"])) == sorted(map(bytes, batches[1]["mlm_targets"]))
    assert not np.array_equal(batches[0]["mlm_targets"], batches[1]["mlm_targets"])
    again = MaskedStream(CHUNKS, WORDS, 64).batch(3)
    assert all(np.array_equal(again[name], value) for name, value in batches[3].items())


def test_slots_padding_and_fillers_are_never_hidden():
    task = Reformulation(("bad", "great"), slots=("label",), extra=3)
    made = rows(task, [{"sentence": "w1 w2 w3 w4"}, {"sentence": "w5"}], [0, 1], WORDS, 32)
    batch = made.batch(np.array([0, 1, -1]))
    seen = np.zeros((3, 32))
    for number in range(200):
        told = masked(batch, WORDS, 1, number, rate=0.5)
        seen += told["mlm_weights"]
        np.testing.assert_array_equal(told["mlm_targets"], batch["encoder_input_tokens"])
    for r, positions in enumerate(made.slot_positions):
        assert not seen[r, positions].any()
        free = ~np.isin(made.encoder_input_tokens[r], list(WORDS.marks))
        free[positions] = False
        np.testing.assert_array_equal(seen[r] > 0, free)  # the template's words too, which are no slots here
    assert not seen[2].any()
    with pytest.raises(UserError, match="the rate 1 must be between 0 and 1"):
        masked(batch, WORDS, 0, 0, rate=1)


def test_what_is_hidden_of_a_task_does_not_depend_on_the_others():
    task = Reformulation(("bad", "great"), slots=())
    told = [{"sentence": " ".join(f"w{7 * i + j}" for j in range(12))} for i in range(5)]
    parts = [rows(task, told[::step], [0] * len(told[::step]), WORDS, 32, task_id=n) for n, step in ((2, 1), (1, -1))]
    mixed, alone = (masked(RowStream(made, 4).batch(3), WORDS, 1, 3, rate=0.4) for made in (join(parts), parts[0]))
    mine = mixed["task_ids"] == 2
    assert mine.tolist() == [False] * 4 + [True] * 4 and alone["mlm_weights"].any(1).all()
    for name in ("encoder_input_tokens", "mlm_targets", "mlm_weights"):
        np.testing.assert_array_equal(mixed[name][mine], alone[name])
    assert len({row.tobytes() for row in alone["mlm_weights"]}) == 4


def test_text_files_are_chunks_of_an_encoders_tokens(tmp_path):
    (tmp_path / "a.txt").write_text("w1 w2 w3 it was great .\n" * 20)
    files = plain_text.find(tmp_path / "a.txt")
    numbers, chunks = plain_text.chunks(files, plain_text.digest(files), WORDS, 14, "train", None, 2)
    assert len(numbers) == 8 and WORDS.decode(chunks[0]) == "w1 w2 w3 it was great . w1 w2 w3 it was great ."
    batch = MaskedStream(chunks[numbers], WORDS, 3).batch(0)
    assert batch["encoder_input_tokens"].shape == batch["token_types"].shape == (3, 16)
    assert (batch["mlm_targets"][:, 0] == WORDS.first_id).all() and (batch["mlm_targets"][:, -1] == WORDS.eos_id).all()
