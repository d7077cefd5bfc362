"""Toy tasks for the data room's tests, and a registry of their own for each test."""

import random

import pytest

from zeroprompt_jax.data import cards

WORDS = ("stone", "river", "light", "garden", "paper", "music", "wind", "tree", "house", "water", "fire", "glass")


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Each test begins with no task registered and leaves the real registry alone."""
    monkeypatch.setattr(cards, "_TASKS", {})
    monkeypatch.setattr(cards, "_MIXTURES", {})


@pytest.fixture
def register():
    """register(number, train=…, test=…) makes tasks `pick_0`, …, whose answer is a word of the input; gives names."""

    def make(number: int, train: int = 12, test: int = 5, wordings: int = 3, prefix: str = "pick") -> list[str]:
        for i in range(number):

            def examples(split, i=i):
                random_words = random.Random(f"{prefix} {i} {split}")
                for k in range(train if split == "train" else test):
                    words = [random_words.choice(WORDS) for _ in range(3 + (i + k) % 5)]
                    target = words[i % 3]
                    yield {
                        "input": f"{k}: " + " ".join(words),
                        "target": target,
                        "references": [target, target.upper()],
                    }

            card = cards.TaskCard(
                name=f"{prefix}_{i}",
                type=f"type_{i % 3}",
                instructions=tuple(f"Task {i}: say word {i % 3} (wording {w})." for w in range(wordings)),
                held_out_instructions=(f"Which is word {i % 3}, asks task {i}?",) if i % 2 == 0 else (),
            )
            cards.register(card, cards.Source(examples, f"{prefix} {i} {train} {test}"))
        return [f"{prefix}_{i}" for i in range(number)]

    return make
