"""The loop of a training: transformers' Trainer and its callbacks, on our rows, with our checkpoints."""

from stages.contract.process.imports import lighten_accelerate, lighten_transformers

lighten_accelerate()  # the modules of this room import both at their top
lighten_transformers()
