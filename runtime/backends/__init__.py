"""Ways to make a denoiser: torch, ONNX Runtime, TensorRT-RTX."""
