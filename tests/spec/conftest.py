"""The reference decoder and the generator of vectors are scripts beside the package: their folders go on the path."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "spec"), str(ROOT / "tools" / "generate"), str(ROOT / "tests" / "spec")]
