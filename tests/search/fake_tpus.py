"""A Ray cluster whose nodes claim to be TPU hosts: Ray's own scheduling of slices, without a chip.

What is faked: the chips, and the metadata by which Ray knows a TPU VM (environment variables, as GKE sets them). All
else is real: raylets, resources, labels, placement groups. `python -m tests.search.fake_tpus search STUDY --address A`
is the command itself, but for one thing: the workers that it leases train on the CPU of their "host".
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
from ray.cluster_utils import Cluster

from clusters.tpu import CHIPS_PER_HOST, Topology
from tests.search.fleets import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from search.slices import Fleet
    from search.study import Study

PAIR = Topology.parse("v4:2x2x2")


class FakeTpus:
    """A cluster of a head without chips, and slices that come and go."""

    def __init__(self) -> None:
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        self.hosts: dict[str, dict[int, Any]] = {}

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self, name: str, topology: Topology = PAIR) -> None:
        """A slice joins, its hosts in an order that is not theirs."""
        for number in reversed(range(topology.hosts)):
            told = {
                "TPU_NAME": name,
                "TPU_WORKER_ID": str(number),
                "TPU_ACCELERATOR_TYPE": topology.accelerator,
                "TPU_TOPOLOGY": topology.shape,
            }
            with _environment(told):  # Ray looks for chips in the process that starts a node
                node = self.cluster.add_node(num_cpus=1, resources={"TPU": CHIPS_PER_HOST}, env_vars=told)
            self.hosts.setdefault(name, {})[number] = node

    def make_whole(self, name: str) -> None:
        """A slice of two hosts is there."""
        if len(self.hosts.get(name, {})) != PAIR.hosts:
            self.preempt(name)
            self.add(name)

    def preempt(self, name: str) -> None:
        """All hosts of a slice go at once, as when a slice is taken away."""
        for node in self.hosts.pop(name, {}).values():
            self.cluster.remove_node(node, allow_graceful=False)

    def lose_host(self, name: str, number: int) -> None:
        """One host of a slice fails, and the others stay."""
        self.cluster.remove_node(self.hosts[name].pop(number), allow_graceful=False)

    def close(self) -> None:
        self.cluster.shutdown()


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def held() -> dict[str, float]:
    """Chips and heads of slices that something holds, of the cluster that this process has joined."""
    there, free = ray.cluster_resources(), ray.available_resources()
    names = (name for name in there if name == "TPU" or name.endswith("-head"))
    return {name: there[name] - free.get(name, 0.0) for name in names if there[name] != free.get(name, 0.0)}


def all_free() -> bool:
    """Whether nothing holds a chip or a head, and no reservation is left that would."""
    table = ray.util.placement_group_table()
    return not held() and all(group["state"] == "REMOVED" for group in table.values())


def wait_until_free() -> None:
    """Wait for all chips and heads; fails with what is held."""
    until(all_free, "every chip and every head to be free", 60.0)


def train_on_the_cpu() -> None:
    """From here on this process's searches lease hosts of TPUs, and their workers train on the CPU."""
    import search.fitting

    fit = search.fitting.fit_to_cluster

    def fitted(study: Study, fleet: Fleet, folder: str) -> list[str]:
        told = fit(study, fleet, folder)
        fleet.plan = replace(fleet.plan, device="cpu")
        return told

    search.fitting.fit_to_cluster = fitted


if __name__ == "__main__":
    from search.cli import main

    train_on_the_cpu()
    sys.argv[0] = "convscale"
    main()
