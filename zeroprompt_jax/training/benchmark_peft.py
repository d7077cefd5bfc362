"""The training step of Hugging Face PEFT on torch that our methods are timed against: same shapes, float32, AdamW."""

import time

import numpy as np

from zeroprompt_jax.errors import UserError
from zeroprompt_jax.methods.base import Method
from zeroprompt_jax.models.t5 import T5Config


class PeftStep:
    """Forward, backward and AdamW on a transformers T5 of this shape, with the adapter that `name` means: full, prompt,
    mpt or lora (query and value). Every call runs one step and returns its seconds. trained: values that train."""

    def __init__(self, config: T5Config, name: str, method: Method, data: dict[str, np.ndarray]):
        try:
            import peft
            import torch
            import transformers
        except ImportError as e:
            raise UserError(f"--versus_peft needs {e.name}: pip install -e '.[parity]'.") from None
        gated = len(config.mlp_activations) > 1
        model = transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                vocab_size=config.vocab_size,
                d_model=config.emb_dim,
                d_kv=config.head_dim,
                num_heads=config.num_heads,
                d_ff=config.mlp_dim,
                num_layers=config.num_encoder_layers,
                num_decoder_layers=config.num_decoder_layers,
                feed_forward_proj="gated-gelu" if gated else "relu",
                dropout_rate=config.dropout_rate,
                tie_word_embeddings=config.logits_via_embedding,
                decoder_start_token_id=0,
                use_cache=False,
            )
        )
        if not config.logits_via_embedding:  # transformers 5 ties at construction
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        # Encoder-only, as ours: PEFT's default for seq2seq is a second prompt for the decoder.
        task = {"task_type": "SEQ_2_SEQ_LM"}
        prompt = {**task, "num_virtual_tokens": getattr(method, "length", None), "num_transformer_submodules": 1}
        adapters = {
            "prompt": lambda: peft.PromptTuningConfig(**prompt),
            "mpt": lambda: peft.MultitaskPromptTuningConfig(**prompt, num_tasks=1, num_ranks=getattr(method, "rank", 1)),
            "lora": lambda: peft.LoraConfig(**task, r=method.rank, lora_alpha=method.alpha, target_modules=["q", "v"]),
        }
        model = model if name == "full" else peft.get_peft_model(model, adapters[name]())
        own = [p for p in model.parameters() if p.requires_grad]
        self.trained = sum(p.numel() for p in own)
        self._model, self._optimizer = model.train(), torch.optim.AdamW(own, lr=1e-3, weight_decay=0.0)
        whole = lambda x: torch.from_numpy(np.asarray(x, np.int64))
        self._batch = {"input_ids": whole(data["encoder_input_tokens"]), "labels": whole(data["decoder_target_tokens"])}
        self._batch["attention_mask"] = (self._batch["input_ids"] > 0).long()
        if name == "mpt":
            self._batch["task_ids"] = whole(data["task_ids"])

    def __call__(self) -> float:
        began = time.perf_counter()
        self._optimizer.zero_grad(set_to_none=True)
        self._model(**self._batch).loss.backward()
        self._optimizer.step()
        return time.perf_counter() - began
