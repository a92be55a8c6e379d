"""Checkpoints of a training: copied, written, sealed, published, and resumed by any number of processes."""

from stages.contract.process.imports import lighten_accelerate, lighten_transformers

lighten_accelerate()  # the modules of this room import both at their top
lighten_transformers()
