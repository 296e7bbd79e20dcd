"""Collect the results of general.sh in a dated file.

usage: python benchmarks/headline/general.py GENERAL_JSON
"""

import argparse
from pathlib import Path

from record import write_result
from table import read

FIGURES = ("rows", "cosine", "recall_at_10", "recall_at_10_in_teachers_index", "rank_agreement")


def main() -> None:
    """Collect and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", type=Path)
    record = read(parser.parse_args().figures)
    rows = []
    for name, model in record["models"].items():
        for text, found in {"held out of the mixture": model.get("held_out", {}), **model.get("texts", {})}.items():
            if "cosine" in found:
                rows.append(
                    {"model": name, "text": text, **{key: round(found[key], 4) for key in FIGURES if key in found}}
                )
        for corpus in model.get("held_out", {}).get("by_corpus", []):
            found = {"rows": corpus["rows"], "cosine": round(corpus["cosine"], 4)}
            rows.append({"model": name, "text": f"held out of {corpus['name']}", **found})
        for rule, found in model.get("word_order", {}).items():
            rows.append({"model": name, "word_order": rule, **{key: round(of, 4) for key, of in found.items()}})
        rows.append({"model": name, "text": "STS-B dev", "sts_spearman": round(model["sts_spearman"], 4)})
    write_result("general", {"script": "benchmarks/headline/general.sh"}, rows)


if __name__ == "__main__":
    main()
