"""Profiles: merge-launch.toml, built-in sites, and the order in which settings apply."""
