"""Mean IoU from one streaming int64 confusion matrix."""

IGNORE_INDEX = 255
