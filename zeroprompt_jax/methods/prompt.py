"""Prompt tuning: P trained vectors before a stack's input (Lester et al. 2021), or before every layer's."""

import dataclasses

import jax

from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.methods import places
from zeroprompt_jax.methods.bank import Bank, per_layer
from zeroprompt_jax.methods.initialisers import Initialiser, Uniform
from zeroprompt_jax.models.conditioning import Conditioning, Stack

_NAMES = {"encoder": "prompt", "decoder": "decoder_prompt"}


@dataclasses.dataclass(frozen=True)
class Prompt(Bank):
    """A soft prompt of `length` vectors.

    stacks: where it stands, 'encoder' (the paper), 'decoder' or both.
    layers: None, a prompt at the stack's input; 'replace' or 'add', one for every layer, which replaces or is added to what
      the layer below made of the prompt's positions (as the public prompt-tuning repository's per-layer prompts, but for
      its embedded prompt, which the first layer's would replace unread; 'add' adds the first layer's to nothing).
    initialiser: of `initialisers`; where there is one for every layer, each draws its own.
    Parameters `prompt` and `decoder_prompt`, [N, P, D]; `layer_prompt/{encoder, decoder}`, [N, L, P, D].
    """

    length: int = 100
    stacks: tuple[str, ...] = ("encoder",)
    layers: str | None = None
    initialiser: Initialiser = Uniform()

    def __post_init__(self):
        stacks = (self.stacks,) if isinstance(self.stacks, str) else tuple(self.stacks)
        object.__setattr__(self, "stacks", stacks)
        if self.length < 1:
            raise UserError(f"Prompt.length is {self.length}; it must be at least 1.")
        if not stacks:
            raise UserError("Prompt.stacks is empty; use 'encoder', 'decoder' or both.")
        for stack in stacks:
            if stack not in _NAMES:
                raise unknown("stack", stack, _NAMES)
        if self.layers not in (None, "replace", "add"):
            raise unknown("Prompt.layers", self.layers, ("replace", "add"))

    def init(self, rng, setting):
        config = setting.config
        L = places.stacks(config)
        if missing := [stack for stack in self.stacks if stack not in L]:
            raise UserError(f"Prompt.stacks names '{missing[0]}', which this backbone does not have.")
        shape = (self.slices(setting), self.length, config.emb_dim)
        draw = lambda key: self.initialiser.make(key, setting, shape)
        keys = dict(zip(self.stacks, jax.random.split(rng, len(self.stacks))))
        if self.layers is None:
            return {_NAMES[stack]: draw(key) for stack, key in keys.items()}
        every = lambda stack, key: jax.vmap(draw, out_axes=1)(jax.random.split(key, L[stack]))
        return {"layer_prompt": {stack: every(stack, key) for stack, key in keys.items()}}

    def logical_axes(self, path):
        # 'prompt_embed', not 'embed': a prompt is small and stays replicated, so it can be saved whole.
        match path.split("/"):
            case ["prompt" | "decoder_prompt"]:
                return ("task", "prompt", "prompt_embed")
            case ["layer_prompt", "encoder" | "decoder"]:
                return ("task", "layers", "prompt", "prompt_embed")
        return super().logical_axes(path)

    def embedded(self, path):
        return self.layers is None  # what a later layer reads is no embedding

    def build(self, groups):
        def stack(name):
            if name not in self.stacks:
                return Stack()
            if self.layers is None:
                return Stack(prompt=groups[_NAMES[name]])
            return Stack(layer_prompt=per_layer(groups["layer_prompt"][name]), layer_prompt_mode=self.layers)

        return Conditioning(stack("encoder"), stack("decoder"))
