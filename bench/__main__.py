"""``python -m bench [CASE …]``: measures, prints, and writes bench/results/results.csv."""

import argparse
import pkgutil
from importlib import import_module

import torch

import bench.cases
from bench.results import FILE, replace_case


def main() -> None:
    known = [module.name for module in pkgutil.iter_modules(bench.cases.__path__)]
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(known)}; all that run here by default")
    here = [name for name in known if torch.cuda.is_available() or not name.endswith("_gpu")]
    chosen = parser.parse_args().cases or here
    if unknown := set(chosen) - set(known):
        parser.error(f"no case {', '.join(sorted(unknown))}; there is {', '.join(known)}")
    for case in chosen:
        rows = list(import_module(f"bench.cases.{case}").rows())
        replace_case(case, rows)
        for row in rows:
            print("  ".join(f"{key}={value}" for key, value in row.items() if value != ""))
    print(f"written to {FILE}")


if __name__ == "__main__":
    main()
