"""How weights change: arguments, the Trainer, parameter groups and schedule, averaging, the dry run.

Imports `models/`, `checks/`, `data_utils`, `data/`, and what these import.
"""
