"""Task metrics, used by training and parity."""
