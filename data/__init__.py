"""What is the true class of a pixel? Layouts, outlines, classes, files, preparation, augmentation, splits and streams.

Imports `cli_utils`, `metrics_utils` and `visual_utils` alone.
"""
