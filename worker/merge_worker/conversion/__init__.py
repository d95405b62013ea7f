"""Models stored in different layouts, made alike."""
