"""From an FP16 graph to a TensorRT engine, and the verification of its precision."""
