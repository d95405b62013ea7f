"""The measurements, tables and plots of `merge-worker compare` and `report`."""
