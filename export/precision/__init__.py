"""Which node of a graph runs in FP16, which in FP32 and why; and the graph that follows from it."""
