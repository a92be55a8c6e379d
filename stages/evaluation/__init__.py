"""What a model is worth on data it never saw: bits per byte, tasks, conversations, preferences, and one table."""
