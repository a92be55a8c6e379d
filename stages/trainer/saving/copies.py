"""Copies of a training's weights and optimizer states in host memory that is allocated once.

A GPU copies to page-locked memory at the speed of its bus (25 to 50 GB/s), to other memory at a tenth of it. The kernel
locks pages at a few GB/s, so the memory is allocated ahead, in a thread, and used again for every checkpoint.
"""

import copy
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    import numpy as np

CHUNK = 2**30  # bytes; torch rounds page-locked memory up to a power of two, so tensors share chunks of that size
ALIGNMENT = 64  # bytes, a cache line
State = TypeVar("State")


class HostCopies:
    """Memory for one copy of a state: nested lists, tuples and dicts with tensors, of DTensors this process's part.

    Args:
        pinned: page-locked, which needs CUDA.
    """

    def __init__(self, pinned: bool) -> None:
        self.pinned = pinned
        self.places: list[Tensor] = []  # uint8, one a tensor, each a storage of its own: torch.save writes storages

    def allocate(self, sizes: list[int]) -> None:
        """Allocate memory for tensors of so many bytes, as far as it is not there; gigabytes take seconds."""
        if sizes == [place.nbytes for place in self.places]:
            return
        self.places = []
        chunk, begin, left = self._chunk(0), 0, sum(map(_aligned, sizes))
        for size in sizes:
            if begin + size > len(chunk):
                chunk, begin = self._chunk(max(size, min(CHUNK, left))), 0
            self.places.append(torch.from_numpy(chunk[begin : begin + size]))
            begin += _aligned(size)
            left -= _aligned(size)

    def _chunk(self, size: int) -> "np.ndarray":
        size = 2 ** math.ceil(math.log2(size)) if self.pinned and size else size
        return torch.empty(size, dtype=torch.uint8, pin_memory=self.pinned).numpy()

    @torch.no_grad()
    def take(self, state: State) -> State:
        """Return a copy of ``state``, which overwrites the one before; it is complete when this returns."""
        self.allocate(copy_sizes(state))
        pairs = zip(_distinct(state).items(), self.places, strict=True)
        copies = {key: _filled(place, part) for (key, part), place in pairs}
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        # deepcopy takes what `memo` has for an object's id: here, for every tensor its copy.
        return copy.deepcopy(state, {id(tensor): _like(tensor, copies[_key(tensor)]) for tensor in _tensors(state)})


def copy_sizes(state: Any) -> list[int]:
    """Return the bytes of each tensor that a copy of ``state`` holds."""
    return [part.nbytes for part in _distinct(state).values()]


def _tensors(state: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor))


def _distinct(state: Any) -> dict[Any, Tensor]:
    """Return the parts of the tensors of ``state``; once those that are one in memory, as a tied head and embedding."""
    return {_key(tensor): _part(tensor) for tensor in _tensors(state)}


def _key(tensor: Tensor) -> Any:
    part = _part(tensor)
    return (part.data_ptr(), part.dtype, part.shape, part.stride()) if part.numel() else id(tensor)


def _part(tensor: Tensor) -> Tensor:
    """Return what this process holds of ``tensor``."""
    return getattr(tensor, "_local_tensor", tensor).detach()


def _filled(place: Tensor, part: Tensor) -> Tensor:
    """Return ``part`` in ``place``, with the strides that torch.clone gives it: they decide which kernel runs."""
    strides = torch.empty_like(part, device="meta").stride()
    held = place.view(part.dtype).as_strided(part.shape, strides)
    return held.copy_(part, non_blocking=True)


def _like(tensor: Tensor, held: Tensor) -> Tensor:
    """Return ``held`` as what ``tensor`` is: itself, or a part of a DTensor."""
    if not hasattr(tensor, "_local_tensor"):
        return held
    from torch.distributed.tensor import DTensor

    assert isinstance(tensor, DTensor)
    return DTensor(held, tensor._spec, requires_grad=False)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
