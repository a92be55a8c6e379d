"""Peak memory of a training step: the allocator's own count on a GPU, the bytes of all live tensors on a CPU."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stages.trainer.loop.preflight import SyntheticTraining


class TensorBytes(TorchDispatchMode):
    """Count the bytes of the tensors that operators return, until they are freed; ``peak`` is the most at once.

    Args:
        known: storages that were there before.
    """

    def __init__(self, known: Iterable[torch.UntypedStorage]) -> None:
        super().__init__()
        sizes = {storage._cdata: storage.nbytes() for storage in known}
        self.live = self.peak = sum(sizes.values())
        self.seen = set(sizes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size


def peak_of(training: SyntheticTraining, parts: int, others: int) -> int:
    """Return the peak bytes of a step in ``parts`` micro-batches; 0 if it cannot be counted.

    Args:
        others: bytes on the GPU that are not this training's.
    """
    if training.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        training.step(parts)
        return int(torch.cuda.max_memory_allocated()) - others
    if training.recipe.compile != "none":  # a dispatch mode cannot look into a compiled graph
        return 0
    states = tree_leaves([training.optimizer.state[p] for p in training.optimizer.state])
    tensors = [*training.model.parameters(), *training.model.buffers(), training.ids, *states]
    with TensorBytes(t.untyped_storage() for t in tensors if isinstance(t, torch.Tensor)) as counted:
        training.step(parts)
    return counted.peak
