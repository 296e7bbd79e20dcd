"""One contender of stream_speed.py, in its own process and on one core: print rows and seconds as JSON.

usage: python stream_contender.py NAME SHARDS WORKDIR [--convert]

NAME is sd, datasets, datasets-shuffled, litdata or mosaicml-streaming; all but the first run in an environment with
stream-peers-requirements.txt. --convert writes the rows of SHARDS in the contender's own format to WORKDIR instead.
A batch is 128 rows: token ids, and embeddings in one float16 array.
"""

import argparse
import importlib.machinery
import importlib.util
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 128
_BUFFER = 10_000
_LONGEST_S = 20.0
_PACKAGES = {"datasets-shuffled": "datasets", "sd": "sentence-distill"}


def rows(shards: Path) -> Iterator[dict[str, np.ndarray]]:
    """Yield every row of a folder of shards."""
    import pyarrow as pa

    for path in sorted(shards.glob("shard-*.arrow")):
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        column = table["embedding"].combine_chunks()
        embeddings = column.values.to_numpy().reshape(-1, column.type.list_size)
        for ids, embedding in zip(table["input_ids"], embeddings, strict=True):
            yield {"input_ids": ids.values.to_numpy(), "embedding": embedding}


def collate(items: list[dict[str, Any]]) -> tuple[list[Any], np.ndarray]:
    """Collate a batch from the rows of a peer."""
    return [item["input_ids"] for item in items], np.stack([np.asarray(item["embedding"]) for item in items])


def sd(shards: Path, folder: Path) -> Callable[[], Iterator[int]]:
    """Stream batches as training does: shuffled, with one length per batch."""
    import torch

    from sentence_distill.student.dataset import ShardStream

    torch.set_num_threads(1)
    stream = ShardStream(shards, held_out=1e-9)
    epochs = iter(range(10**6))
    return lambda: (len(b.targets) for b in stream.batches(batch_size=BATCH, seed=0, epoch=next(epochs)))


def datasets(shards: Path, folder: Path, shuffled: bool = False) -> Callable[[], Iterator[int]]:
    """Stream the shards, which are Arrow files, with datasets, in its fast way: whole batches as NumPy."""
    from datasets import load_dataset

    files = sorted(map(str, shards.glob("shard-*.arrow")))
    data = load_dataset("arrow", data_files=files, streaming=True, split="train")
    data = data.select_columns(["input_ids", "embedding"])
    if shuffled:
        data = data.shuffle(seed=0, buffer_size=_BUFFER)
    data = data.with_format("numpy")
    return lambda: (len(batch["embedding"]) for batch in data.iter(batch_size=BATCH))


def litdata(shards: Path, folder: Path) -> Callable[[], Iterator[int]]:
    """Stream with litdata's dataset and loader, shuffled."""
    from litdata import StreamingDataLoader, StreamingDataset

    data = StreamingDataset(str(folder), shuffle=True, seed=0)
    loader = StreamingDataLoader(data, batch_size=BATCH, num_workers=0, collate_fn=collate)
    return lambda: (len(batch[1]) for batch in loader)


def without_torchvision() -> None:
    """Stub torchvision, which mosaicml-streaming imports but needs only for images."""
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
        sys.modules[name] = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(name, None))
    sys.modules["torchvision.datasets"].VisionDataset = object  # type: ignore[attr-defined]
    sys.modules["torchvision.transforms.functional"].to_tensor = None  # type: ignore[attr-defined]


def mosaicml_streaming(shards: Path, folder: Path) -> Callable[[], Iterator[int]]:
    """Stream with mosaicml-streaming's dataset in PyTorch's loader, with its default shuffle."""
    without_torchvision()
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    data = StreamingDataset(local=str(folder), shuffle=True, shuffle_seed=0, batch_size=BATCH)
    loader = DataLoader(data, batch_size=BATCH, num_workers=0, collate_fn=collate)
    return lambda: (len(batch[1]) for batch in loader)


def convert(name: str, shards: Path, folder: Path) -> None:
    """Write the rows in the format of a contender."""
    if name == "litdata":
        from litdata import optimize

        optimize(fn=_one, inputs=[str(shards)], output_dir=str(folder), num_workers=1, chunk_bytes="64MB")
    elif name == "mosaicml-streaming":
        without_torchvision()
        from streaming import MDSWriter

        columns = {"input_ids": "ndarray:uint16", "embedding": "ndarray:float16"}
        with MDSWriter(out=str(folder), columns=columns) as writer:
            for row in rows(shards):
                writer.write(row)


def _one(shards: str) -> Iterator[dict[str, np.ndarray]]:
    yield from rows(Path(shards))


def main() -> None:
    """Measure one pass, or 20 seconds of it, after a warmup of 300 batches."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("shards", type=Path)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--convert", action="store_true")
    args = parser.parse_args()
    folder = args.workdir / f"{args.name}-{args.shards.name}"
    if args.convert:
        # It gets its name when it is complete.
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        convert(args.name, args.shards, partial)
        partial.rename(folder)
        return
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    makers: dict[str, Callable[[Path, Path], Callable[[], Iterator[int]]]] = {
        "sd": sd,
        "datasets": datasets,
        "datasets-shuffled": lambda shards, folder: datasets(shards, folder, shuffled=True),
        "litdata": litdata,
        "mosaicml-streaming": mosaicml_streaming,
    }
    batches = makers[args.name](args.shards, folder)
    for _ in zip(range(300), batches(), strict=False):
        pass
    began, used = time.perf_counter(), time.process_time()
    read = 0
    for count in batches():
        read += count
        if time.perf_counter() - began > _LONGEST_S:
            break
    result = {
        "rows": read,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - used,
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "version": version(_PACKAGES.get(args.name, args.name)),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
