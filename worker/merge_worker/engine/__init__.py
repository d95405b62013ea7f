"""Plan to bytes: lanes, passes, processes, devices."""
