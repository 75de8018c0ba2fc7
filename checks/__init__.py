"""Is the data right? Every pair scanned once into a record, one judge of the records, and a clean copy.

Imports `data_utils` and `data/`, and what these import; knows nothing of models.
"""
