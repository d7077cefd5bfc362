"""Prompt tuning: P trained vectors before the encoder's input (Lester et al. 2021)."""

import dataclasses

import jax
import jax.numpy as jnp

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods.bank import Bank
from zeroprompt_jax.models.conditioning import Conditioning, Stack


@dataclasses.dataclass(frozen=True)
class Prompt(Bank):
    """A soft prompt of `length` vectors, drawn uniformly from [-init_range, init_range] (the paper's 0.5)."""

    length: int = 100
    init_range: float = 0.5

    def __post_init__(self):
        if self.length < 1:
            raise UserError(f"Prompt length is {self.length}; it must be at least 1.")

    def init(self, rng, setting):
        shape = (self.slices(setting), self.length, setting.config.emb_dim)
        return {"prompt": jax.random.uniform(rng, shape, jnp.float32, -self.init_range, self.init_range)}

    def logical_axes(self, path):
        # 'prompt_embed', not 'embed': a prompt is small and stays replicated, so it can be saved whole.
        return {"prompt": ("task", "prompt", "prompt_embed")}[path]

    def build(self, groups):
        return Conditioning(encoder=Stack(prompt=groups["prompt"]))
