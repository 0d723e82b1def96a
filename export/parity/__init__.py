"""Parity: every stage of the chain against the FP32 checkpoint, on the same examples."""
