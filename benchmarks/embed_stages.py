"""Profile of stage one: time per stage, how long the teacher waits, and throughput without a teacher.

usage: python benchmarks/embed_stages.py CORPUS WORKDIR [--teacher minilm] [--slices 4]

CORPUS should have about 100,000 sentences. Measures each stage alone, then `--slices` slices with the teacher, then the
whole corpus with a teacher that computes nothing, for several numbers of reader processes. Writes a dated file.
"""

import argparse
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from no_teacher import no_teacher
from record import write_result

from sentence_distill.data.corpus import Corpus
from sentence_distill.data.hashing import sentence_id
from sentence_distill.data.sentences import split_sentences
from sentence_distill.pipeline.config import EmbedConfig
from sentence_distill.pipeline.embed import EmbedRun
from sentence_distill.pipeline.engines import LocalEngine, TeacherSpec
from sentence_distill.pipeline.load import locate_teacher
from sentence_distill.pipeline.plan import Plan, make_plan, text_fingerprint
from sentence_distill.pipeline.slices import Job, commit_slice, embed_slices, prepare_slice, slice_records
from sentence_distill.pipeline.teacher import Teacher


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Run `work` three times; return the lowest wall time in seconds, and its result."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - started)
    return min(seconds), result


def stages(corpus: Corpus, plan: Plan, teacher: Teacher, job: Job) -> list[dict[str, Any]]:
    """Measure microseconds per sentence of each stage alone, over the first slice."""
    (part,) = plan.slices[:1]
    read_s, records = timed(lambda: [record for _, run in slice_records(corpus, [part]) for record in run])
    split_s, sentences = timed(
        lambda: [
            sentence.text
            for record in records
            if record.text is not None
            for sentence in split_sentences(record.text, job.rules)
            if not sentence.reason
        ]
    )
    hash_s, _ = timed(lambda: [sentence_id(sentence) for sentence in sentences])
    tokenise_s, _ = timed(lambda: teacher.tokenize(sentences))
    text = prepare_slice(job, part, iter(records), teacher.tokenizer)
    started = time.perf_counter()
    vectors = teacher.embed(text.tokens, job.fingerprint.token_budget)
    teacher_s = time.perf_counter() - started
    write_s, _ = timed(lambda: commit_slice(job, text, vectors))
    seconds = {
        "read lines": read_s,
        "split and clean": split_s,
        "hash": hash_s,
        "tokenise (all cores)": tokenise_s,
        "teacher (all cores)": teacher_s,
        "write, fsync and checksum": write_s,
    }
    return [{"stage": name, "us_per_sentence": round(1e6 * took / len(sentences), 1)} for name, took in seconds.items()]


def run(job: Job, teacher: Teacher, plan: Plan, slices: int, readers: int) -> dict[str, Any]:
    """Run stage one for the first `slices` slices, into an empty folder."""
    shutil.rmtree(job.out, ignore_errors=True)
    job.out.mkdir(parents=True)
    todo = plan.slices[:slices]
    waits = embed_slices(job, teacher, todo, readers=readers)
    sentences = sum(part.sentences - len(part.duplicates) for part in todo)
    return {
        "readers": readers,
        "sentences": sentences,
        "sentences_per_second": round(sentences / waits.total, 1),
        "waited_for_text": round(waits.reading / waits.total, 4),
        "waited_for_disk": round(waits.writing / waits.total, 4),
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus")
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--teacher", default="minilm")
    parser.add_argument("--slices", type=int, default=4)
    options = parser.parse_args()
    config = EmbedConfig()
    corpus = Corpus.open([options.corpus])
    started = time.perf_counter()
    text = text_fingerprint(corpus, config.rules, config.shard_rows)
    plan = make_plan(corpus, config.rules, config.shard_rows, text, lambda count: None)
    plan_s = time.perf_counter() - started
    teacher = TeacherSpec(located=locate_teacher(options.teacher)).load("cpu")
    out = options.workdir / "stages-shards"
    job = EmbedRun(corpus=corpus, engine=LocalEngine(teacher, 1), out=out, config=config).job(plan)
    job.out.mkdir(parents=True, exist_ok=True)
    rows = [{"stage": "plan (once, ahead of all)", "us_per_sentence": round(1e6 * plan_s / plan.rows, 1)}]
    rows += stages(corpus, plan, teacher, job)
    rows.append({"run": "with the teacher", **run(job, teacher, plan, options.slices, 1)})
    nothing = no_teacher(options.teacher)
    for readers in (1, 2):
        rows.append({"run": "without a teacher's work", **run(job, nothing, plan, len(plan.slices), readers)})
    write_result("embed_stages", {"teacher": teacher.name, "sentences": plan.rows}, rows)


if __name__ == "__main__":
    main()
