"""Documents: reading, duplicates, filters, vocabulary, packing."""
