"""Hugging Face PEFT's layout of prompt tuning, multitask prompt tuning (MPT), LoRA and IA3 for T5.

An adapter is a folder of adapter_config.json and adapter_model.safetensors. Plain trees in, plain trees out: parameters
are a method's, banks [N, …]. Nothing here needs torch or peft.

PEFT gives a seq2seq model two submodules unless told otherwise: a second prompt for the decoder, which its `generate`
then leaves out. Our prompts stand before the encoder's input, so everything written here says
num_transformer_submodules 1, and what has 2 is refused rather than half read.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np

from zeroprompt_jax.errors import UserError, unknown
from zeroprompt_jax.models.t5 import T5Config

TYPES = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "LORA", "IA3")
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_MODULES = {
    "encoder/self_attention": "layer.0.SelfAttention",
    "encoder/mlp": "layer.1.DenseReluDense",
    "decoder/self_attention": "layer.0.SelfAttention",
    "decoder/cross_attention": "layer.1.EncDecAttention",
    "decoder/mlp": "layer.2.DenseReluDense",
}
_NAMES = {"query": "q", "key": "k", "value": "v", "out": "o", "wi": "wi", "wi_0": "wi_0", "wi_1": "wi_1", "wo": "wo"}
_TENSOR = re.compile(r"(encoder|decoder)\.block\.(\d+)\.(layer\.\d\.\w+)\.(\w+)\.(lora_A\.weight|lora_B\.weight|ia3_l)")
# What changes what a LoRA or IA3 checkpoint computes, and has no place in our trees.
_FOREIGN = ("use_dora", "lora_bias", "rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication")


class Imported(NamedTuple):
    """params: a method's tree. settings: what that method is configured with, such as {'length': 100} or {'rank': 8,
    'alpha': 16}. peft_type: one of `TYPES`."""

    peft_type: str
    params: dict[str, Any]
    settings: dict[str, Any]


def to_peft(
    params: Mapping[str, Any], config: T5Config, alpha: float | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(adapter configuration, tensors) of one task's parameters: `prompt` [1, P, D], `lora/…` or `scale/…` [1, L, …]; or
    of MPT's, `shared` [P, D], `u` [N, P, R], `v` [N, R, D], which PEFT keeps for all tasks together.

    alpha: of LoRA. Raises UserError for parameters that PEFT has no layout for, and for more than one task's.
    """
    flat = {name: np.asarray(x) for name, x in flax.traverse_util.flatten_dict(dict(params), sep="/").items()}
    kinds = {name.partition("/")[0] for name in flat}
    if kinds == {"shared", "u", "v"}:
        N, P, R = flat["u"].shape
        tensors = {"prompt_embeddings": flat["shared"], "prefix_task_cols": flat["u"], "prefix_task_rows": flat["v"]}
        return _prompt_config("MULTITASK_PROMPT_TUNING", P, config, num_tasks=N, num_ranks=R), tensors
    if more := [name for name, x in flat.items() if x.shape[0] != 1]:
        raise UserError(f"PEFT's layout holds one task, and {more[0]} has {flat[more[0]].shape[0]}; export one at a time.")
    flat = {name: x[0] for name, x in flat.items()}
    if kinds == {"prompt"}:
        return _prompt_config("PROMPT_TUNING", flat["prompt"].shape[0], config), {"prompt_embeddings": flat["prompt"]}
    if kinds == {"lora"}:
        return _lora(flat, config, alpha)
    if kinds == {"scale"}:
        return _ia3(flat, config)
    shown = ", ".join(sorted(flat)[:3])
    raise UserError(f"PEFT has no layout for {shown}; there is one for an encoder's prompt, MPT, LoRA and IA3.")


def from_peft(adapter_config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], config: T5Config) -> Imported:
    """The inverse of `to_peft`, for a backbone of this configuration.

    Raises UserError naming a peft_type, an option or a tensor that has no counterpart here, and missing layers.
    """
    kind = adapter_config.get("peft_type")
    if kind not in TYPES:
        raise unknown("peft_type", str(kind), TYPES)
    task_type = adapter_config.get("task_type")
    if task_type not in ("SEQ_2_SEQ_LM", None):
        raise UserError(f"The adapter's task_type is {task_type}; a T5 needs SEQ_2_SEQ_LM.")
    if foreign := [name for name in _FOREIGN if adapter_config.get(name)]:
        raise UserError(f"The adapter sets {foreign[0]} = {adapter_config[foreign[0]]!r}, which nothing here computes.")
    if adapter_config.get("bias", "none") != "none":
        raise UserError(f"The adapter trains biases (bias = {adapter_config['bias']!r}), and a T5 has none.")
    tensors = {name: np.asarray(x, np.float32) for name, x in tensors.items()}
    if kind in ("LORA", "IA3"):
        found = _layers(tensors, config)
        return _from_lora(found, adapter_config) if kind == "LORA" else _from_ia3(found)
    # None is PEFT's default, and that is 2 for a seq2seq model.
    if (modules := adapter_config.get("num_transformer_submodules")) != 1:
        raise UserError(
            f"The adapter's num_transformer_submodules is {modules}: half of its rows stand before the decoder, where PEFT "
            f"trains with them and generates without them; train it with num_transformer_submodules=1."
        )
    return _from_prompt(kind, adapter_config, tensors, config)


def save(folder: str | Path, adapter_config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Writes an adapter's folder, each file under a temporary name first."""
    from safetensors.numpy import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".partial.{os.getpid()}"
    # PEFT asks for the framework in the header.
    save_file({name: np.ascontiguousarray(x, np.float32) for name, x in tensors.items()}, partial, {"format": "pt"})
    os.replace(partial, folder / TENSORS)
    partial.write_text(json.dumps(dict(adapter_config), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, folder / CONFIG)


def load(folder: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(adapter configuration, tensors) of an adapter's folder. UserError where a file is missing or cannot be read."""
    from safetensors import SafetensorError
    from safetensors.flax import load_file  # reads bfloat16 too, unlike safetensors.numpy

    folder = Path(folder)
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            raise UserError(f"'{folder}' is no PEFT adapter that can be read here: it has no {name}.")
    try:
        adapter_config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return adapter_config, {name: np.asarray(x) for name, x in load_file(folder / TENSORS).items()}
    except (ValueError, SafetensorError) as e:
        raise UserError(f"The PEFT adapter '{folder}' cannot be read ({e}).") from None


def _config(kind: str, **more: Any) -> dict[str, Any]:
    return {"peft_type": kind, "task_type": "SEQ_2_SEQ_LM", "inference_mode": True, "base_model_name_or_path": None, **more}


def _prompt_config(kind: str, length: int, config: T5Config, **more: Any) -> dict[str, Any]:
    sizes = dict(token_dim=config.emb_dim, num_attention_heads=config.num_heads, num_layers=config.num_encoder_layers)
    return _config(
        kind, num_virtual_tokens=length, num_transformer_submodules=1, prompt_tuning_init="RANDOM", **sizes, **more
    )


def _from_prompt(kind: str, adapter_config, tensors, config: T5Config) -> Imported:
    P, D = adapter_config.get("num_virtual_tokens"), config.emb_dim
    wanted, settings = {"prompt_embeddings": (P, D)}, {"length": P}
    if kind == "MULTITASK_PROMPT_TUNING":
        N, R = adapter_config.get("num_tasks", 1), adapter_config.get("num_ranks", 1)
        wanted |= {"prefix_task_cols": (N, P, R), "prefix_task_rows": (N, R, D)}
        settings["rank"] = R
    if (shapes := {name: x.shape for name, x in tensors.items()}) != wanted:
        raise UserError(f"The adapter holds tensors {shapes}; its configuration and this backbone need {wanted}.")
    if kind == "PROMPT_TUNING":
        return Imported(kind, {"prompt": tensors["prompt_embeddings"][None]}, settings)
    u, v = tensors["prefix_task_cols"], tensors["prefix_task_rows"]
    return Imported(kind, {"shared": tensors["prompt_embeddings"], "u": u, "v": v}, settings)


def _modules(place: str, name: str, layers: int) -> list[str]:
    """Hugging Face's modules of a projection, one a layer."""
    side = place.partition("/")[0]
    return [f"{side}.block.{i}.{_MODULES[place]}.{name}" for i in range(layers)]


def _targets(modules: list[str], config: T5Config) -> list[str]:
    """PEFT's target_modules: a short name such as `q` where it means just these modules, else every module by name."""
    by_name: dict[str, list[str]] = {}
    for module in modules:
        by_name.setdefault(module.rpartition(".")[2], []).append(module)
    out = []
    for name, own in by_name.items():
        mlp = name.startswith("w")
        places = [place for place in _MODULES if place.endswith("mlp") == mlp]
        out += [name] if len(own) == sum(_depth(config, place) for place in places) else own
    return sorted(out)


def _depth(config: T5Config, place: str) -> int:
    return config.num_encoder_layers if place.startswith("encoder") else config.num_decoder_layers


def _lora(flat: Mapping[str, np.ndarray], config: T5Config, alpha: float | None):
    if alpha is None:
        raise UserError("LoRA's alpha is needed to write it for PEFT, which scales by alpha / rank.")
    ranks = {x.shape[-1] for name, x in flat.items() if name.endswith("/a")}
    if len(ranks) != 1:
        raise UserError(f"PEFT's layout has one rank, and this LoRA has {sorted(ranks)}.")
    tensors, modules = {}, []
    for path in [name[:-2] for name in flat if name.endswith("/a")]:
        place, name = path.removeprefix("lora/").rsplit("/", 1)
        a_LIR, b_LRO = flat[f"{path}/a"], flat[f"{path}/b"]
        for i, module in enumerate(_modules(place, _NAMES[name], a_LIR.shape[0])):
            modules.append(module)
            tensors[f"{_PREFIX}{module}.lora_A.weight"] = np.ascontiguousarray(a_LIR[i].T)
            tensors[f"{_PREFIX}{module}.lora_B.weight"] = np.ascontiguousarray(b_LRO[i].T)
    plain = dict(bias="none", lora_dropout=0.0, fan_in_fan_out=False, use_rslora=False, use_dora=False)
    adapter_config = _config("LORA", r=ranks.pop(), lora_alpha=alpha, target_modules=_targets(modules, config), **plain)
    return adapter_config, tensors


def _ia3(flat: Mapping[str, np.ndarray], config: T5Config):
    tensors, modules, hidden = {}, [], []
    for path, x_LO in flat.items():
        place, name = path.removeprefix("scale/").rsplit("/", 1)
        before = name == "hidden"  # PEFT scales the input of the projection behind it, its `feedforward_modules`
        for i, module in enumerate(_modules(place, "wo" if before else _NAMES[name], x_LO.shape[0])):
            key = f"{_PREFIX}{module}.ia3_l"
            if key in tensors:
                raise UserError(f"PEFT scales either the input of {module} or its output; this IA3 scales both.")
            (hidden if before else modules).append(module)
            tensors[key] = x_LO[i][None] if before else x_LO[i][:, None]
    targets = _targets([*modules, *hidden], config)
    inputs = _targets(hidden, config)
    if not set(inputs) <= set(targets):  # `wo` means all of them only where all are of one kind
        targets, inputs = sorted([*modules, *hidden]), sorted(hidden)
    return _config("IA3", target_modules=targets, feedforward_modules=inputs, fan_in_fan_out=False), tensors


def _layers(tensors: Mapping[str, np.ndarray], config: T5Config) -> dict[tuple[str, str, str], np.ndarray]:
    """Stacks every projection's layers: {(place, our projection, lora_A / lora_B / ia3_l): [L, …]}."""
    names = {theirs: ours for ours, theirs in _NAMES.items()}
    found: dict[tuple[str, str, str], dict[int, np.ndarray]] = {}
    for key, x in tensors.items():
        match = _TENSOR.fullmatch(key.removeprefix(_PREFIX))
        places = [p for p, module in _MODULES.items() if match and p.startswith(match[1]) and module == match[3]]
        if not places or match[4] not in names:
            raise UserError(f"The adapter's tensor {key} belongs to no projection of a T5.")
        found.setdefault((places[0], names[match[4]], match[5].removesuffix(".weight")), {})[int(match[2])] = x
    out = {}
    for (place, name, kind), layers in found.items():
        L = _depth(config, place)
        if sorted(layers) != list(range(L)) or len({x.shape for x in layers.values()}) != 1:
            raise UserError(
                f"The adapter has {kind} of {place}/{name} in the layers {sorted(layers)}; all {L} are needed, of one shape."
            )
        out[place, name, kind] = np.stack([layers[i] for i in range(L)])
    return out


def _from_lora(found, adapter_config) -> Imported:
    flat = {}
    for (place, name, kind), x in found.items():
        if (place, name, "lora_B" if kind == "lora_A" else "lora_A") not in found:
            raise UserError(f"The adapter has {kind} of {place}/{name} alone.")
        flat[f"lora/{place}/{name}/{'a' if kind == 'lora_A' else 'b'}"] = np.swapaxes(x, 1, 2)[None]
    rank, alpha = adapter_config["r"], adapter_config["lora_alpha"]
    # Rank-stabilised LoRA scales by alpha / sqrt(rank).
    alpha = alpha * math.sqrt(rank) if adapter_config.get("use_rslora") else alpha
    targets = tuple(sorted({f"{place}/{name}" for place, name, _ in found}))
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    return Imported("LORA", params, {"rank": rank, "alpha": alpha, "targets": targets})


def _from_ia3(found) -> Imported:
    flat = {}
    for (place, name, _), x in found.items():
        # [L, O, 1] scales an output, [L, 1, I] an input.
        if x.shape[1] == 1 and name != "wo":
            raise UserError(f"The adapter scales the input of {place}/{name}; here only that of an MLP's wo can be.")
        flat[f"scale/{place}/{'hidden' if x.shape[1] == 1 else name}"] = x.reshape(1, x.shape[0], -1)
    targets = tuple(sorted(path.removeprefix("scale/") for path in flat))
    return Imported("IA3", flax.traverse_util.unflatten_dict(flat, sep="/"), {"targets": targets})
