"""Settings of hypothesis for the tests of algorithms."""

from hypothesis import HealthCheck, settings

# A busy machine is no fault of a method; the same cases in every run are.
slow = [HealthCheck.too_slow]
settings.register_profile(
    "methods", deadline=None, derandomize=True, max_examples=60, suppress_health_check=slow
)
settings.load_profile("methods")
