"""Evaluations of a merge and of its inputs by lm-evaluation-harness, a program of its own."""
