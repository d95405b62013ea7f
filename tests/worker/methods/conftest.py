"""Settings of hypothesis for the tests of methods."""

from hypothesis import settings

# A busy machine is no fault of a method; the same cases in every run are.
settings.register_profile("methods", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("methods")
