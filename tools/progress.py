"""Progress bars on stderr, shown only where a person watches: on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(title: str, unit: str = "step") -> Iterator[Callable[[int, int], None]]:
    """A bar driven by calls of `progress(done, total)`, as the denoising loop makes them."""
    from tqdm import tqdm

    with tqdm(desc=title, unit=unit, disable=None, leave=False, dynamic_ncols=True) as shown:

        def progress(done: int, total: int) -> None:
            shown.total = total
            shown.update(done - shown.n)

        yield progress
