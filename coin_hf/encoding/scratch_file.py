"""A temporary file for what does not fit in memory."""

import errno
import os
import tempfile

from coin_hf.errors import InputError


class ScratchFile:
    """A file without a name: whatever ends the process, its space is given back."""

    def __init__(self) -> None:
        """Open it where the system keeps temporary files.

        Raises:
            InputError: If that is no place to write to.
        """
        try:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115
        except OSError as error:
            raise InputError(f"no temporary file can be made, {error}: set TMPDIR") from error

    def write(self, data: memoryview, offset: int) -> None:
        """Write bytes.

        Args:
            data: The bytes.
            offset: Where in the file.

        Raises:
            InputError: If the disk is full.
            OSError: If it fails otherwise.
        """
        try:
            while data:
                written = os.pwrite(self._file.fileno(), data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise InputError(
                f"refine: {tempfile.gettempdir()} has no room for the activations that wait there, "
                f"{offset / 2**30:.1f} GiB so far: free some, set TMPDIR to another disk, or raise "
                "`memory` of the step `layerwise`"
            ) from error

    def read(self, data: memoryview, offset: int) -> None:
        """Fill a view with bytes that were written.

        Args:
            data: The view.
            offset: Where in the file.
        """
        while data:
            count = os.preadv(self._file.fileno(), [data], offset)
            data, offset = data[count:], offset + count

    def close(self) -> None:
        """Give the space back."""
        self._file.close()
