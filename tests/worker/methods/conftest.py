"""Makes `driver` importable: the suite has no packages, so that its folders may be named freely."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
