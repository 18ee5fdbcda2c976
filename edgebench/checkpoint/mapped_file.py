"""A file mapped for reading, of which only what was looked at last stays in memory.

Linux counts every mapped page that was touched as resident (``RssFile``), and drops it only under pressure. Whoever
walks through a checkpoint once would end up with all of it in the resident set, so each `MappedFile.view` gives the
pages of the view before it back (``MADV_DONTNEED`` of a file's clean pages: see madvise(2)).
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgebench.errors import ArtifactError, UsageError


class MappedFile:
    """One file, mapped.

    Raises:
        UsageError: when it cannot be opened, or is no regular file.
        ArtifactError: when it is empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if path.exists() and not path.is_file():  # opening a pipe would wait for ever
                raise UsageError(f"{path} is not a regular file.", "give the path of a file with weights.")
            with path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                """Bytes of the file when it was mapped."""
                if self.size == 0:
                    raise ArtifactError(f"{path} is empty.", "get it again; its size should be that of its source.")
                self._map = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}.", "check the path and its rights.") from error
        self._resident = (0, 0)

    def view(self, start: int, count: int) -> npt.NDArray[np.uint8]:
        """These bytes as a read-only array over the map, [count]. An older view stays valid, and is read again.

        The caller has compared ``start`` and ``count`` with `size`.
        """
        self._give_back()
        if count == 0:
            return np.empty(0, np.uint8)
        values = np.frombuffer(self._map, np.uint8, count, start)
        self._resident = (start - start % mmap.PAGESIZE, start + count)
        return values

    def _give_back(self) -> None:
        begin, end = self._resident
        if end > begin:
            self._map.madvise(mmap.MADV_DONTNEED, begin, end - begin)
        self._resident = (0, 0)

    def close(self) -> None:
        """Unmap it. Twice is fine; an array that still looks into it keeps it mapped until the array is gone."""
        if self._map.closed:
            return
        self._give_back()
        try:
            self._map.close()
        except BufferError:
            return
