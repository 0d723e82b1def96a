"""The paths that need CUDA. `python -m tests.gpu` runs them; elsewhere they are collected and skipped."""
