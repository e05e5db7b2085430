"""Recipes, calibration with NVIDIA ModelOpt, and quantized checkpoints."""
