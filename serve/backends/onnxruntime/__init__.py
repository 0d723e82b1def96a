"""ONNX graphs on the CPU, for a Triton without an ONNX Runtime backend of its own."""
