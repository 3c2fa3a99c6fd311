from __future__ import annotations

import argparse
from pathlib import Path

from recipes.families import FAMILIES, REFUSED, write_folder

parser = argparse.ArgumentParser(description="Write a toy-width model with random weights.")
parser.add_argument("family", choices=sorted(FAMILIES | REFUSED))
parser.add_argument("folder", type=Path)
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()
print(write_folder(arguments.family, arguments.folder, arguments.seed))
