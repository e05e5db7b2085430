"""Small graph passes over onnx_ir models, each with its contract."""
