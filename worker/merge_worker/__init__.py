"""The merge itself: recipe → headers → plan → stream → write, on the node."""

__version__ = "0.1.0"
