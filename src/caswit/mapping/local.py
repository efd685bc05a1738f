"""Who computes the blocks: every engine calls the same function for each and stores parts in the same journal."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol, Self

from caswit.errors import DataError
from caswit.inference.predictor import BlockPixels
from caswit.mapping.blocks import BlockMapper, Job
from caswit.mapping.journal import Journal
from caswit.raster.cog import encode_part
from caswit.raster.reader import UInt8
from caswit.raster.windows import Block, Window
from caswit.weights.model_folder import LoadedModel

_READ_AHEAD = 2
"""Blocks in memory that are read or being read, beside the one that is computed."""


class Planned(NamedTuple):
    """A block of the plan."""

    number: int
    """Its number, and the name of its part."""
    window: Window
    """In pixels that are read."""
    native: Window
    """The pixels of the map it fills."""


class Outcome(NamedTuple):
    """What became of a block."""

    block: Planned
    error: DataError | None = None
    """Why it could not be read; None where it is stored."""


class Engine(Protocol):
    """Maps blocks. Use as a context manager."""

    @property
    def precision(self) -> str:
        """What is computed in: bf16 or fp32."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def run(self, todo: Iterable[Planned], journal: Journal) -> Iterator[Outcome]:
        """Map blocks and finish them in the journal; one outcome each, in any order."""
        ...


class LocalEngine:
    """This process: one thread reads ahead, one computes, one compresses and writes."""

    def __init__(self, job: Job, loaded: LoadedModel) -> None:
        self.mapper = BlockMapper(job, loaded)
        self.precision = self.mapper.precision

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.mapper.scene.close()

    def run(self, todo: Iterable[Planned], journal: Journal) -> Iterator[Outcome]:
        """Map blocks in order. Holds three blocks that are read and one that is written."""

        def write(block: Planned, values: UInt8 | None) -> Outcome:
            journal.finish(block.number, None if values is None else encode_part(values))
            return Outcome(block)

        with ThreadPoolExecutor(1, "write") as writer, ThreadPoolExecutor(1, "read") as reader:
            writing: Future[Outcome] | None = None
            for planned, block, pixels in self._read_ahead(todo, reader):
                if isinstance(pixels, DataError):
                    yield Outcome(planned, pixels)
                    continue
                values = None if pixels is None else self.mapper.compute(block, pixels)
                if writing is not None:
                    yield writing.result()
                writing = writer.submit(write, planned, values)
            if writing is not None:
                yield writing.result()

    def _read_ahead(
        self, todo: Iterable[Planned], reader: ThreadPoolExecutor
    ) -> Iterator[tuple[Planned, Block, BlockPixels | DataError | None]]:
        def read(planned: Planned) -> tuple[Planned, Block, BlockPixels | DataError | None]:
            block = self.mapper.block(planned.window)
            try:
                return planned, block, self.mapper.read(block)
            except DataError as error:
                return planned, block, error

        reading: deque[Future[tuple[Planned, Block, BlockPixels | DataError | None]]] = deque()
        for planned in todo:
            reading.append(reader.submit(read, planned))
            if len(reading) >= _READ_AHEAD:
                yield reading.popleft().result()
        while reading:
            yield reading.popleft().result()
