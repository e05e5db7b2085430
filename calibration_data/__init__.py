"""Prompts, the moving-shapes world, and recordings of real denoising trajectories."""
