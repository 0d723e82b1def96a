"""ONNX graphs on the processor, for a Triton that lacks its own ONNX Runtime backend."""
