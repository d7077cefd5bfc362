"""What JAX says of a machine that lacks something, as a sentence of ours."""

import os
import traceback


def complaint(error: Exception) -> str | None:
    """The sentence, where an error is that memory or the platform is not there; None for any other."""
    first = (str(error).splitlines() or [""])[0].rstrip(".")
    if "RESOURCE_EXHAUSTED" in first:
        return (
            f"A device's memory is not enough ({first}). Set Train.accumulate to divide the batch, T5Config.remat_policy to "
            f"'full', or give a smaller batch size or a larger slice."
        )
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, (RuntimeError, AssertionError)) and frames and frames[-1].filename.endswith("xla_bridge.py"):
        asked = os.environ.get("JAX_PLATFORMS", "")
        why = first.partition(" (set JAX_PLATFORMS")[0]  # its own advice
        return (
            f"JAX_PLATFORMS is '{asked}', which JAX cannot use here{f' ({why})' * bool(why)}. Unset it, or install "
            f"zeroprompt_jax[gpu] or zeroprompt_jax[tpu] on a machine that has one."
        )
    return None
