"""From the tables that recipe.sh left to a dated result.

usage: python benchmarks/headline/recipe.py TABLES
"""

import argparse
import json
from pathlib import Path

from record import write_result


def main() -> None:
    """Gather and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", type=Path)
    rows = []
    for path in sorted(parser.parse_args().tables.glob("*.json")):
        task, seed = path.stem.rsplit("-", 1)
        table = json.loads(path.read_text(encoding="utf-8"))
        for row in table["rows"]:
            scores = {
                f"{dev}_{name}": round(score, 4) for dev, of in row["scores"].items() for name, score in of.items()
            }
            times = {name: round(row[name], 1) for name in ("seconds", "sentences_per_second") if row[name] is not None}
            rows.append({"task": task, "seed": int(seed), "model": row["title"], **scores, **times})
        planned, took = table["plan"]["seconds"], table["took"]
        rows += [
            {
                "task": task,
                "seed": int(seed),
                "stage": stage,
                "took_s": round(took[stage], 1),
                "planned_s": round(planned[stage], 1),
            }
            for stage in took
            if took[stage] > 2 or planned[stage] < 2  # what an earlier run made took no time
        ]
    write_result("recipe", {"script": "benchmarks/headline/recipe.sh"}, rows)


if __name__ == "__main__":
    main()
