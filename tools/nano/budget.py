"""A training loop's clock: steps until a deadline, a warm-up and cosine learning rate over elapsed time, a log."""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor


class Budget:
    """Iterates step numbers until `seconds` are over, so a stage always ends in time.

    The clock starts after the first step, which may compile.
    """

    def __init__(self, stage: str, seconds: float, log: Path, warm_up: float = 0.03) -> None:
        self.stage, self.seconds, self.path, self.warm_up = stage, seconds, log, warm_up
        self._start = self._reported = 0.0

    def __iter__(self) -> Iterator[int]:
        self._start = self._reported = time.monotonic()
        step = 0
        while step == 0 or self.progress < 1:
            yield step
            if step == 0:
                self._start = time.monotonic()
            step += 1

    @property
    def progress(self) -> float:
        """Share of the time used, 0..1."""
        return min(1.0, (time.monotonic() - self._start) / max(self.seconds, 1e-9))

    def learning_rate(self, peak: float) -> float:
        """Linear warm-up, then half a cosine down to 1% of the peak."""
        if self.progress < self.warm_up:
            return peak * (0.02 + 0.98 * self.progress / self.warm_up)
        share = (self.progress - self.warm_up) / (1 - self.warm_up)
        return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))

    def reports(self, step: int) -> bool:
        """True on the first step and then every five seconds: reading a loss waits for the GPU."""
        due = step == 0 or time.monotonic() - self._reported > 5
        if due:
            self._reported = time.monotonic()
        return due

    def log(self, step: int, **values: Tensor | float) -> None:
        """Append one JSON line to the log and show it."""
        record: dict[str, object] = {
            "stage": self.stage,
            "step": step,
            "second": round(self.progress * self.seconds, 1),
        }
        record |= {name: round(torch.as_tensor(value).item(), 5) for name, value in values.items()}
        line = json.dumps(record)
        with self.path.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)
