"""No test asserts a time: the first of hypothesis's examples may have to import torch."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
