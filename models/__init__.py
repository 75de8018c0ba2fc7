"""From an image to a prediction: loading, adapting, the fused SegFormer, tiled upsampling, losses, inference.

Imports `data_utils` and `data/`, and what these import; knows nothing of checks.
"""
