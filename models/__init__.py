"""From an image to a prediction: loading, adapting, sizes, the fused SegFormer, upsampling, losses, inference.

Imports `data_utils` and `data/`, and what these import; knows nothing of checks.
"""
