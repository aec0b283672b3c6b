"""Runs the conversion of blocks on one process or several, and writes what comes out.

A worker converts a block, tells the parent how large its parts are, is told where in the files they go, and writes them
there itself: no row is copied or moved afterwards, and each process holds one block.
"""

from __future__ import annotations

import gc
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainkit.dataset.batches import convert_block, convert_records, report_of
from trainkit.dataset.write import flushing, side_file
from trainkit.errors import TrainkitError
from trainkit.lines import plan_blocks, read_chunks

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from pathlib import Path

    from trainkit.dataset.batches import Batch, Ledger, Recipe
    from trainkit.lines import Block, Source

# A second process costs about 20 ms; below this it does not pay.
BYTES_PER_WORKER = 24 << 20


@dataclass(frozen=True, slots=True)
class Job:
    """One conversion: `folder` None means that nothing is written, only counted.

    `on_progress` is called with the number of stored bytes that were read since the last call.
    """

    sources: list[Source]
    recipe: Recipe
    ledger: Ledger
    folder: Path | None
    on_progress: Callable[[int], None]


def convert_sources(job: Job, max_workers: int) -> None:
    """Convert all sources of a job: the plain files first, in parallel, then those that are read front to back."""
    blocks = plan_blocks(job.sources)
    total = sum(block.stop - block.start for block in blocks)
    workers = max(1, min(max_workers, total // BYTES_PER_WORKER))
    if workers > 1:
        convert_with_workers(job, blocks, workers)
    else:
        for block in blocks:
            finish_batch(job, convert_block(job.sources[block.source], block, job.recipe))
            job.on_progress(block.stop - block.start)
    for index, source in enumerate(job.sources):
        if source.whole:
            convert_stream(job, index, source)


def convert_stream(job: Job, index: int, source: Source) -> None:
    """Convert a source that can only be read from front to back."""
    done = 0
    for chunk in read_chunks(source):
        finish_batch(job, convert_records(chunk.records, job.recipe, index))
        job.on_progress(chunk.position - done)
        done = chunk.position


def finish_batch(job: Job, batch: Batch) -> None:
    places = job.ledger.place(report_of(batch, job.recipe), job.sources[batch.source])
    if job.folder is not None:
        write_batch(batch, places, job.folder)


def write_batch(batch: Batch, places: dict[str, int], folder: Path) -> None:
    """Write the text of each side at its place."""
    for side, text in batch.texts.items():
        path = folder / side_file(side)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                write_at(descriptor, text, places[side])
            finally:
                os.close(descriptor)
        except OSError as error:
            raise TrainkitError(
                f"{path}: cannot be written: {error.strerror}", "the data set of before is untouched"
            ) from None


def write_at(descriptor: int, text: bytes, offset: int) -> None:
    view = memoryview(text)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def convert_with_workers(job: Job, blocks: list[Block], workers: int) -> None:
    """Share the blocks among processes; block i is worker i mod n's."""
    import multiprocessing

    # Forked workers start at once and inherit the recipe's closures; no thread runs yet when they are made.
    context = multiprocessing.get_context("fork")
    links: list[Connection[Any, Any]] = []
    processes = []
    for index in range(workers):
        here, there = context.Pipe()
        links.append(here)
        process = context.Process(target=work, args=(there, links, job, blocks[index::workers]), daemon=True)
        process.start()
        there.close()
        processes.append(process)
    try:
        with flushing(job.folder):
            for index, block in enumerate(blocks):
                link = links[index % workers]
                send(link, job.ledger.place(receive(link), job.sources[block.source]))
                job.on_progress(block.stop - block.start)
            for link in links:
                receive(link)  # each says when its last block is written
    finally:
        for process in processes:
            process.terminate()
            process.join()


def send(link: Connection[Any, Any], message: Any) -> None:
    try:
        link.send(message)
    except ConnectionError:
        raise worker_killed() from None


def receive(link: Connection[Any, Any]) -> Any:
    """Return a worker's next message; raise what it raised."""
    try:
        message = link.recv()
    except (EOFError, ConnectionError):
        raise worker_killed() from None
    if isinstance(message, Exception):
        raise message
    return message


def worker_killed() -> TrainkitError:
    return TrainkitError("a worker process was killed", "was the machine out of memory? --jobs 1 needs less")


def work(link: Connection[Any, Any], parents: list[Connection[Any, Any]], job: Job, blocks: list[Block]) -> None:
    """Convert and write the given blocks; the life of one worker.

    `parents` are the parent's ends of the links so far, which came along with the fork: while a worker holds one, no
    worker learns that the parent was killed, and the lock of the folder stays held.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends the workers
    gc.disable()  # rows make no cycles, and looking for some is a tenth of the time
    for parent in parents:
        parent.close()
    try:
        for block in blocks:
            batch = convert_block(job.sources[block.source], block, job.recipe)
            link.send(report_of(batch, job.recipe))
            places = link.recv()
            if job.folder is not None:
                write_batch(batch, places, job.folder)
        link.send(None)
    except (EOFError, ConnectionError):
        return  # the parent is gone
    except (TrainkitError, OSError) as error:
        with suppress(ConnectionError):
            link.send(error)
