"""Text files to examples, and examples to batches."""
