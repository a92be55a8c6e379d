"""From a compute budget to a model: laws (how much, how fast), shapes (which model), memory (does it fit)."""
