"""What people look at: the page of a check, the model card, intervals, publishing, and what a
benchmark compares with.

Imports every room; only the scripts import it.
"""
