"""Time per sentence and peak memory of `sd embed` for growing corpora, with a teacher that computes nothing.

usage: python benchmarks/embed_scale.py WIKIEXTRACTOR.zst WORKDIR [--sentences 50000 500000 2500000]

Each size is a prefix of the corpus, which its own process plans, embeds and closes. Writes a dated file and a plot.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

from record import RESULTS, write_result

from sentence_distill.data.sources import find_sources

# Sentences per line of a WikiExtractor file, including tags, titles and blank lines.
_SENTENCES_A_LINE = 0.94


def embed_once(corpus: str, out: Path) -> dict[str, Any]:
    """Run stage one in this process."""
    from no_teacher import no_teacher

    from sentence_distill.data.corpus import Corpus
    from sentence_distill.pipeline.config import EmbedConfig
    from sentence_distill.pipeline.embed import EmbedRun
    from sentence_distill.pipeline.engines import LocalEngine

    engine = LocalEngine(no_teacher("minilm"), readers=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    run = EmbedRun(
        corpus=Corpus.open([corpus]),
        engine=engine,
        out=out,
        config=EmbedConfig(),
    )
    totals = run.run().totals
    seconds = time.perf_counter() - started
    return {
        "sentences": totals.rows,
        "seconds": round(seconds, 1),
        "us_per_sentence": round(1e6 * seconds / totals.rows, 1),
        "mb_before": round(before / 1024),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "peak_mb_of_reader": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
        "bytes_per_sentence": round(totals.bytes / totals.rows),
    }


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot time per sentence and memory against the size of the corpus."""
    import matplotlib.pyplot as plt

    figure, (time_axes, memory_axes) = plt.subplots(1, 2, figsize=(9, 3))
    sizes = [row["sentences"] for row in rows]
    time_axes.plot(sizes, [row["us_per_sentence"] for row in rows], "o-", color="#1f6f8b")
    time_axes.set_ylabel("µs a sentence, plan to manifest")
    memory_axes.plot(sizes, [row["peak_mb"] for row in rows], "o-", color="#1f6f8b", label="run")
    memory_axes.plot(sizes, [row["peak_mb_of_reader"] for row in rows], "o-", color="#b8b8b8", label="reader")
    memory_axes.set_ylabel("peak memory, MB")
    memory_axes.legend(frameon=False)
    for axes in (time_axes, memory_axes):
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("sentences")
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Measure each size in its own process, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--sentences", type=int, nargs="+", default=[50_000, 500_000, 2_500_000])
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(embed_once(str(options.corpus), options.workdir)))
        return
    options.workdir.mkdir(parents=True, exist_ok=True)
    part, out = options.workdir / "part.txt", options.workdir / "scale-shards"
    rows = []
    for sentences in options.sentences:
        with find_sources([str(options.corpus)])[0].open() as stream, part.open("wb") as file:
            file.writelines(islice(stream, int(sentences / _SENTENCES_A_LINE)))
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, __file__, str(part), str(out), "--once"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    shutil.rmtree(out)
    path = write_result("embed_scale", {"teacher": "none, with MiniLM's tokenizer and width"}, rows)
    plot(rows, RESULTS / path.with_suffix(".svg").name)


if __name__ == "__main__":
    main()
