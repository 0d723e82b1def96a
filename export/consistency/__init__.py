"""Self-consistency: a model's answers compared with each other, so that no reference is needed."""
