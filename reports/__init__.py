"""What people look at: the page of a check, the model card, intervals, and publishing.

Imports every room; only the scripts import it.
"""
