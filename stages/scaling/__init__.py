"""Sizing of a model by a compute budget: laws (how much, how fast), shapes (which model), memory (does it fit)."""
