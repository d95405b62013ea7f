"""Places in the checkout."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# For PYTHONPATH of processes that import the two packages.
SOURCES = os.pathsep.join(str(ROOT / folder) for folder in ("launcher", "worker"))
