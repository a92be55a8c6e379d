"""Measure a model on held-out data: bits per byte, tasks, conversations, preferences, and one closing table."""
