"""From an FP16 graph to a TensorRT engine, and the proof of its precision."""
