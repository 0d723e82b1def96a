"""From a checkpoint to ONNX graphs and engines, each verified against the checkpoint."""
