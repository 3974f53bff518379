"""``python -m demo.motion FOLDER``: learns the model and writes it there with a series to try it on.

It needs the extra ``meshnode[learning]``. What is written: ``motion.onnx``, ``drive.csv`` and ``drive.parquet`` (of a
vehicle that the model has not seen), ``node.toml``.
"""

import argparse
import json
import sys
from pathlib import Path

from demo.motion.learning import learn


def main() -> int:
    """Learn, write, and print how well it went."""
    parser = argparse.ArgumentParser(prog="python -m demo.motion", description="A model of windows of a series.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    print(json.dumps(learn(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
