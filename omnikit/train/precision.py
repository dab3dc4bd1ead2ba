"""Default precision of training: bfloat16 products on GPUs that have them, by autocast over float32 weights."""

from __future__ import annotations

import torch


def precisions(on_gpu: bool, given: str | None = None) -> dict[str, str]:
    """Return the defaults of SpeechBrain's run options for precision, in training and in validation.

    Args:
        on_gpu: whether the training runs on a GPU.
        given: precision of training that the command line gives; validation on a GPU has the same.
    """
    if not on_gpu:
        return {"precision": "fp32", "eval_precision": "fp32"}
    fast = torch.cuda.is_bf16_supported(including_emulation=False)
    chosen = given or ("bf16" if fast else "fp32")
    return {"precision": chosen, "eval_precision": chosen}
