"""Algorithms that several merge methods share: their passes over a tensor, and the mathematics."""
