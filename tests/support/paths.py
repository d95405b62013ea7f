"""Places in the checkout."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# PYTHONPATH of processes that import the two packages, or the helpers here.
SOURCES = os.pathsep.join(str(ROOT / folder) for folder in ("launcher", "worker", "tests"))
