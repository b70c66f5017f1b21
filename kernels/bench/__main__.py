"""``python -m longlive_optimized.kernels.bench [OP ...] [--json FILE]``."""

import argparse

from .runner import run

parser = argparse.ArgumentParser(prog="longlive_optimized.kernels.bench", description="Measure the operators.")
parser.add_argument("names", nargs="*", metavar="OP", help="operators; none means all")
parser.add_argument("--json", dest="json_path", metavar="FILE", help="write a JSON line per row here")
arguments = parser.parse_args()
run(arguments.names, arguments.json_path)
