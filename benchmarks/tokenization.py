"""Tokenization against ``datasets.map`` and datatrove: speed, and memory at two sizes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
from _timing import ROOT, print_header, print_table, require, time_in_turns
from datasets import Dataset, concatenate_datasets, disable_progress_bars
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.tokens import DocumentTokenizer
from loguru import logger
from transformers import AutoTokenizer

from wrinklefree.text.documents.document import Document
from wrinklefree.text.documents.parquet import (
    DOCUMENTS_FILE,
    ROW_GROUP_BYTES,
    DocumentWriter,
    read_documents,
)
from wrinklefree.tokens.shards import read_tokens
from wrinklefree.tokens.tokenizer import END_OF_TEXT, TOKENIZER_FILE, end_of_text_id
from wrinklefree.tracking.cpus import available_cpus

TOKENIZER = ROOT / "data" / "tokenizer"
SHARD_MEGABYTES = 8
"""A row group of documents.parquet is that much."""
SHARDS_PER_CORE = 2
MEMORY_MEGABYTES = (48, 144)
"""Both have every document at least once: the longest decides how much a batch takes."""
REPEATS = 5
TOKENIZE = """
import json, resource, sys
from pathlib import Path
from wrinklefree.tokens.settings import TokenizeSettings
from wrinklefree.tokens.tokenize import tokenize_source
from wrinklefree.tracking.cpus import available_cpus
*folders, megabytes, processes = sys.argv[1:]
source, tokenizer, output, work = map(Path, folders)
settings = TokenizeSettings(shard_megabytes=int(megabytes), processes=int(processes))
tokenize_source(settings, source, tokenizer, output, work=work)
# Not of RUSAGE_SELF, which counts the process that started this one.
status = Path("/proc/self/status").read_text()
mine = int(status.partition("VmHWM:")[2].split()[0])
print(json.dumps([mine / 1024, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024]))
"""


def write_text(folder: Path, megabytes: float, parts: int) -> None:
    """The text of the pipeline's sources, repeated up to a size.

    As one ``documents.parquet`` for us and in ``parts`` files of equal size for the others, whose
    workers share work by files.
    """
    sources = sorted(ROOT.glob(f"data/clean/*/{DOCUMENTS_FILE}"))
    sources = sources or sorted(ROOT.glob(f"data/raw/*/{DOCUMENTS_FILE}"))
    texts = [document.text for path in sources for document, _ in read_documents(path.parent)]
    # Sources differ in speed, so all parts need something of each.
    texts = [texts[n] for n in np.random.default_rng(0).permutation(len(texts))]
    folder.mkdir()
    size = 0
    with contextlib.ExitStack() as stack:
        whole = stack.enter_context(DocumentWriter(folder, "d"))
        writers = []
        for part in range(parts):
            (folder / str(part)).mkdir()
            writers.append(stack.enter_context(DocumentWriter(folder / str(part), "d")))
        for number, text in enumerate(cycle(texts)):
            share = size / (megabytes * 1_000_000)
            if share >= 1:
                break
            document = Document(f"{number:09d}", text)
            whole.append(document, "train")
            writers[int(share * parts)].append(document, "train")
            size += len(text.encode())


def ours(source: Path, output: Path, processes: int) -> list[float]:
    """Run the stage in a new Python; peak memory in MiB of it and of its largest process."""
    shutil.rmtree(output, ignore_errors=True)
    (output / "tokens").mkdir(parents=True)
    folders = [source, TOKENIZER, output / "tokens", output / "work"]
    arguments = [*map(str, folders), str(SHARD_MEGABYTES), str(processes)]
    command = [sys.executable, "-c", TOKENIZE, *arguments]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "true"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    require(result.returncode == 0, f"tokens, not {result.stderr}")
    return json.loads(result.stdout)


def datasets_map(texts: Dataset, output: Path, processes: int) -> None:
    """Write its arrow cache. Turning the parquet files into its own format is not timed."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    texts.map(
        lambda batch: {"ids": tokenizer(batch["text"], **options)["input_ids"]},
        batched=True,
        num_proc=processes,
        remove_columns=texts.column_names,
        cache_file_name=str(output / "tokens.arrow"),
        load_from_cache_file=False,
    )


def datatrove(source: Path, output: Path, processes: int) -> None:
    """Its reader and its tokenizer step, one file for each worker."""
    shutil.rmtree(output, ignore_errors=True)
    steps = [
        ParquetReader(str(source), glob_pattern=f"*/{DOCUMENTS_FILE}"),
        DocumentTokenizer(
            str(output / "tokens"),
            str(TOKENIZER / TOKENIZER_FILE),
            eos_token=END_OF_TEXT,
            shuffle_documents=False,
        ),
    ]
    # Forked, its workers need not import anything.
    executor = LocalPipelineExecutor(
        steps,
        tasks=processes,
        workers=processes,
        logging_dir=str(output / "logs"),
        start_method="fork",
    )
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        executor.run()


def check(folder: Path) -> int:
    """All wrote the same ids of every document; tokens without ends of text."""
    shards = read_tokens(folder / "ours" / "tokens").splits["train"].shards
    mine = np.concatenate([shard.tokens for shard in shards])
    lengths = np.concatenate([np.diff(s.ends.astype(np.int64), prepend=0) for s in shards])
    end = end_of_text_id(TOKENIZER)

    files = sorted((folder / "datatrove" / "tokens").glob("*.ds"))
    flat = np.concatenate([np.fromfile(path, mine.dtype) for path in files])
    ends = [np.fromfile(f"{path}.index", "<u8").astype(np.int64) for path in files]
    theirs = np.concatenate([np.diff(each, prepend=0) for each in ends])
    require(np.array_equal(lengths, theirs), "documents as long as datatrove's")
    require(np.array_equal(mine, flat), "the token ids of datatrove")

    paths = sorted((folder / "datasets").glob("tokens*.arrow"))
    mapped = concatenate_datasets([Dataset.from_file(str(path)) for path in paths])
    lists = mapped.data.column("ids").chunks
    theirs = np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in lists])
    require(np.array_equal(lengths, theirs + 1), "documents as long as those of datasets")
    flat = np.concatenate([chunk.flatten().to_numpy() for chunk in lists])
    inside = np.ones(len(mine), dtype=bool)
    inside[np.cumsum(lengths) - 1] = False
    require(np.array_equal(mine[inside], flat), "the token ids of datasets")
    require(bool((mine[~inside] == end).all()), "an end of text behind every document")
    return len(flat)


def count_processor(spent: list[float], call: Callable[[], object]) -> None:
    """Note the processor's seconds, those of ended processes included: other work costs none."""
    before = sum(os.times()[:4])
    call()
    spent.append(sum(os.times()[:4]) - before)


def compare_speed(folder: Path, cores: int) -> None:
    source = folder / "text"
    megabytes = SHARDS_PER_CORE * cores * ROW_GROUP_BYTES / 1_000_000
    write_text(source, megabytes, cores)
    paths = sorted(source.glob(f"*/{DOCUMENTS_FILE}"))
    texts = Dataset.from_parquet([str(path) for path in paths], cache_dir=str(folder / "cache"))
    calls = {
        "datasets.map": lambda: datasets_map(texts, folder / "datasets", cores),
        "datatrove": lambda: datatrove(source, folder / "datatrove", cores),
        "ours, one process": lambda: ours(source, folder / "ours", 1),
        "ours": lambda: ours(source, folder / "ours", cores),
    }
    for call in calls.values():
        call()
    tokens = check(folder)
    processor: dict[str, list[float]] = {name: [] for name in calls}
    seconds = time_in_turns(
        {name: partial(count_processor, processor[name], call) for name, call in calls.items()},
        REPEATS,
    )
    title = (
        f"{megabytes:.0f} MB of text, {cores} processes each, shards of {SHARD_MEGABYTES} MB;"
        " ours includes starting Python"
    )
    print_table(title, seconds, ["datasets.map", "datatrove"], tokens)
    busy = {name: spent[1:] for name, spent in processor.items()}
    print_table("the same, time of the processor", busy, ["datasets.map", "datatrove"], tokens)


def compare_memory(folder: Path, cores: int) -> None:
    print(f"\n{'peak memory, MiB':<26}{'stage':>9}{'a process':>11}")
    for megabytes in MEMORY_MEGABYTES:
        source = folder / f"text{megabytes}"
        write_text(source, megabytes, 1)
        for processes in (1, cores):
            stage, process = ours(source, folder / "ours", processes)
            name = f"{megabytes} MB, {processes} process{'es' if processes > 1 else ''}"
            print(f"{name:<26}{stage:9.0f}{process if processes > 1 else 0:11.0f}")


def main() -> None:
    print_header("Tokenization")
    if not (TOKENIZER / TOKENIZER_FILE).is_file():
        print("data/tokenizer is missing, nothing timed; make it: snakemake tokenizer")
        return
    disable_progress_bars()
    logger.remove()
    # Both others want this of whoever starts processes of theirs.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as name:
        cores = available_cpus()
        compare_speed(Path(name), cores)
        compare_memory(Path(name), cores)


if __name__ == "__main__":
    main()
