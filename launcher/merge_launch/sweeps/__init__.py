"""Sweeps: one recipe, a grid of parameters, one job each or one array."""
