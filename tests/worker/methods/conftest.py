"""Makes `driver` importable: the suite has no packages, so that its folders may be named freely."""

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

# A busy machine is no fault of a method; the same cases in every run are.
settings.register_profile("methods", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("methods")
