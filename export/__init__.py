"""LinearDiT to ONNX with Q/DQ, TensorRT-RTX engines and bundles."""
