"""Recipe and headers to Plan. Loads no torch."""
