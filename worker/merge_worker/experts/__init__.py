"""Mixtures of experts: the gates of their routers."""
