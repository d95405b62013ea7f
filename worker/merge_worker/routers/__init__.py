"""Routers of mixtures of experts: training of nothing but them, in a model of transformers."""
