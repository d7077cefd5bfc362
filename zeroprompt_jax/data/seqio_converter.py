"""SeqIO's feature converter with what tells rows apart, for trainers that read SeqIO's data. Importing it imports seqio."""

from collections.abc import Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf

from zeroprompt_jax.errors import UserError

_Spec = seqio.FeatureConverter.FeatureSpec


class FeatureConverter(seqio.EncDecFeatureConverter):
    """SeqIO's encoder-decoder converter, and of each row what a method reads, from the features of `seqio_bridge`.

    places: task to its place, or places, in the method's banks: of the feature `task` is made `task_ids`, [] or [F].
    instructions: of the feature `instructions`, which TASK_FEATURE_LENGTHS gives a length, is made `instruction_tokens`.
    The other arguments are SeqIO's.

    Raises UserError where rows are to be packed, as then a row holds several tasks, for places without a task, and for
    examples without the features; in a running pipeline TensorFlow's InvalidArgumentError, for a task that has no place.
    """

    def __init__(
        self,
        places: Mapping[str, int | Sequence[int]] | None = None,
        instructions: bool = False,
        pack: bool = True,
        **kwargs,
    ):
        if places is not None and not places:
            raise UserError("FeatureConverter.places names no task, but the method keeps something of each.")
        self._tasks = list(places or ())
        self._places = np.array(list((places or {}).values()), np.int32)  # [N] or [N, F]
        self.TASK_FEATURES, self.MODEL_FEATURES = dict(self.TASK_FEATURES), dict(self.MODEL_FEATURES)
        self._reads = ["task"] * (places is not None) + ["instructions"] * instructions
        if pack and self._reads:
            raise UserError(f"The method reads '{self._reads[0]}' of each row, so rows cannot be packed; set pack=False.")
        if "task" in self._reads:
            self.TASK_FEATURES["task"] = _Spec(dtype=tf.string)
            self.MODEL_FEATURES["task_ids"] = _Spec(dtype=tf.int32, rank=self._places.ndim - 1)
        if instructions:
            self.TASK_FEATURES["instructions"] = self.MODEL_FEATURES["instruction_tokens"] = _Spec(dtype=tf.int32)
        super().__init__(pack=pack, **kwargs)

    def __call__(self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]) -> tf.data.Dataset:
        lengths = {"task": 1, **task_feature_lengths}
        for name in self._reads:
            if name not in lengths:
                raise UserError(f"TASK_FEATURE_LENGTHS has no length for '{name}', which the method reads.")
            if name not in ds.element_spec:
                raise UserError(f"The method reads '{name}' of each row; give it to the tasks: to_seqio(features=['{name}']).")
        return super().__call__(ds, {name: length for name, length in lengths.items() if name in self.TASK_FEATURES})

    def _convert_example(self, features: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
        made = dict(super()._convert_example(features))
        if "instructions" in self._reads:
            made["instruction_tokens"] = features["instructions"]
        if "task" in self._reads:
            place = tf.where(tf.constant(self._tasks) == features["task"])[:, 0]
            known = tf.debugging.Assert(tf.size(place) == 1, ["The method has no place for the task", features["task"]])
            with tf.control_dependencies([known]):
                made["task_ids"] = tf.gather(tf.constant(self._places), tf.reshape(place, ()))
        return made

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> Mapping[str, int]:
        made = dict(super().get_model_feature_lengths(task_feature_lengths))
        if "instructions" in self._reads:
            made["instruction_tokens"] = task_feature_lengths["instructions"]
        if "task" in self._reads:
            made["task_ids"] = 1 if self._places.ndim == 1 else self._places.shape[-1]
        return made
