"""ONNX graphs: tracing, loading, types, structure and ONNX Runtime sessions."""
