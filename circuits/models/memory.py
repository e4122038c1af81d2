"""Batch sizes from the memory there is, halved when it was not enough after all."""

from __future__ import annotations

import torch

from circuits.models.adapters import Adapter

# More tokens at once than this gain no speed, they only take memory.
_TOKENS_CPU = 8192
_TOKENS_GPU = 131072
_SHARE = 0.4  # of the free memory


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on `device`."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + reserved
    import psutil

    return psutil.virtual_memory().available


def bytes_per_row(
    adapter: Adapter, suffix: int, length: int, vocab: int, dtype: torch.dtype
) -> int:
    """About what one row of a forward pass takes at its peak, without gradients.

    suffix: positions that are computed; length: positions that are attended to.
    """
    stream = suffix * (6 * adapter.d_model + 3 * adapter.d_mlp)
    heads = adapter.n_heads * adapter.d_head
    attention = 3 * adapter.n_heads * suffix * length + 4 * heads * length
    return dtype.itemsize * (stream + attention) + 3 * 4 * vocab


def rows_that_fit(
    adapter: Adapter, suffix: int, length: int, vocab: int, device: torch.device, dtype: torch.dtype
) -> int:
    """How many rows to run at once; at least 1."""
    memory = int(_SHARE * free_memory(device))
    by_memory = memory // bytes_per_row(adapter, suffix, length, vocab, dtype)
    most_tokens = _TOKENS_GPU if device.type == "cuda" else _TOKENS_CPU
    return max(1, min(by_memory, most_tokens // suffix))


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on a GPU or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in text or "not enough memory" in text
    )
