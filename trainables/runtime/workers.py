"""The workers that train one trial together, as far as their hosts talk: flags, texts, sums of host values."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor


class Workers:
    """This worker's `rank` among `world` workers. If `torch.distributed` has not been initialised, it is alone.

    Hosts talk over gloo, also where gradients travel otherwise: nothing here waits for the device.
    """

    def __init__(self) -> None:
        up = dist.is_available() and dist.is_initialized()
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if up else (0, 1)
        own_group = self.world > 1 and dist.get_backend() != "gloo"
        self._group = dist.new_group(backend="gloo") if own_group else None

    def sum(self, values: Tensor) -> Tensor:
        """The sum of the workers' host tensors, in float64."""
        total = values.detach().to("cpu", torch.float64, copy=True)
        if self.world > 1:
            dist.all_reduce(total, group=self._group)
        return total

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag, true if it is so for any worker."""
        if self.world == 1:
            return flags
        votes = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._group)
        return tuple(bool(vote) for vote in votes)

    def gather(self, value: Tensor) -> list[Tensor]:
        """Every worker's host tensor, of one shape, in the order of ranks."""
        if self.world == 1:
            return [value]
        values = [torch.empty_like(value) for _ in range(self.world)]
        dist.all_gather(values, value, group=self._group)
        return values

    def gather_text(self, text: str) -> list[str]:
        """Every worker's text, in the order of ranks."""
        texts = [text] * self.world
        if self.world > 1:
            dist.all_gather_object(texts, text, group=self._group)
        return texts

    def meet(self, timeout_s: float) -> None:
        """Wait for all workers to call this. Raises `RuntimeError` if one does not within `timeout_s`."""
        if self.world > 1:
            dist.monitored_barrier(group=self._group, timeout=timedelta(seconds=timeout_s))
