"""The engine that maps blocks in this process, and what every engine has in common.

All engines map a block with the same ``BlockMapper`` and store its part in the same journal.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol, Self

from caswit.errors import DataError
from caswit.inference.predictor import BlockPixels
from caswit.mapping.blocks import BlockMapper, MappedBlock
from caswit.mapping.journal import Journal
from caswit.mapping.plan import MapPlan, PlannedBlock
from caswit.raster.cog import encode_part
from caswit.raster.windows import Block
from caswit.weights.model_folder import LoadedModel

_READ_AHEAD = 2
"""Blocks in memory that are read or being read, beside the one that is computed."""
_ReadBlock = tuple[PlannedBlock, Block, BlockPixels | DataError | None]
"""A block with its pixels, the error of reading them, or None where there is nothing to map."""


class Outcome(NamedTuple):
    """A block that an engine is done with."""

    block: PlannedBlock
    error: DataError | None = None
    """Error of a block that could not be read; None where the block is stored."""


class Engine(Protocol):
    """Maps blocks. Use as a context manager."""

    @property
    def precision(self) -> str:
        """The precision that is computed in: int8, bf16 or fp32."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def run(self, todo: Iterable[PlannedBlock], journal: Journal) -> Iterator[Outcome]:
        """Map blocks and finish them in the journal; yield one outcome each, in any order."""


# Threads suffice: reading, computing and compressing let go of Python's lock.
class LocalEngine:
    """Maps blocks in this process: one thread reads ahead, one computes, one compresses and writes."""

    def __init__(self, plan: MapPlan, loaded: LoadedModel) -> None:
        self.mapper = BlockMapper(plan, loaded, may_time=True)
        self.precision = self.mapper.precision

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.mapper.scene.close()

    def run(self, todo: Iterable[PlannedBlock], journal: Journal) -> Iterator[Outcome]:
        """Map blocks in order. Holds three blocks that are read and one that is written."""

        def write(block: PlannedBlock, begun: Callable[[], MappedBlock] | None) -> Outcome:
            mapped = None if begun is None else begun()
            journal.finish(block.number, None if mapped is None else encode_part(mapped.values, mapped.tags))
            return Outcome(block)

        with ThreadPoolExecutor(1, "write") as writer, ThreadPoolExecutor(1, "read") as reader:
            writing: Future[Outcome] | None = None
            for planned, block, pixels in self._read_ahead(todo, reader):
                if isinstance(pixels, DataError):
                    yield Outcome(planned, pixels)
                    continue
                # On a GPU it is only begun: the next block is queued there while this one is fetched and written.
                begun = None if pixels is None else self.mapper.begin(block, pixels)
                # Only now, so that writing overlaps with computing; a full disk ends the run one block later.
                if writing is not None:
                    yield writing.result()
                writing = writer.submit(write, planned, begun)
            if writing is not None:
                yield writing.result()

    def _read_ahead(self, todo: Iterable[PlannedBlock], reader: ThreadPoolExecutor) -> Iterator[_ReadBlock]:
        def read(planned: PlannedBlock) -> _ReadBlock:
            block = self.mapper.block(planned.window)
            try:
                return planned, block, self.mapper.read(block)
            # Returned rather than raised, since blocks before this one still have to be stored.
            except DataError as error:
                return planned, block, error

        # Never more than _READ_AHEAD blocks wait in memory, however slow the network is beside the disk.
        reading: deque[Future[_ReadBlock]] = deque()
        for planned in todo:
            reading.append(reader.submit(read, planned))
            if len(reading) >= _READ_AHEAD:
                yield reading.popleft().result()
        while reading:
            yield reading.popleft().result()
