"""The losses of a training: of conversations, pairs, rewards and a teacher."""

from stages.contract.process.imports import lighten_accelerate, lighten_transformers

lighten_accelerate()  # the modules of this room import both at their top
lighten_transformers()
