"""Where Ray puts the ranks of a group, and which rank each actor becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_accel.devices.base import Placement, Rank
from langchain_accel.errors import DeviceLost, PlanRejected
from langchain_accel.runtime.ray_rank import Lookout, RankActor, Whereabouts

PLACE_SECONDS = 60.0
"""How long a group waits for its places in the cluster; a node that is being started has time to come."""

START_SECONDS = 120.0
"""How long the actors' processes may take to start."""


@dataclass(frozen=True, slots=True)
class Seat:
    """One rank and its actor.

    Attributes:
        rank: which rank it is; its address is still empty.
        actor: Ray's handle of its `RankActor`.
        lookout: handle of its node's `Lookout`.
        where: its node and process.
    """

    rank: Rank
    actor: Any
    lookout: Any
    where: Whereabouts


def seated(nodes: Sequence[str]) -> list[tuple[int, Rank]]:
    """Return `(actor, rank)` in order of ranks, so that the ranks of a node are neighbours.

    Args:
        nodes: each actor's node. The first actor's holds rank 0.
    """
    order = sorted(range(len(nodes)), key=lambda actor: nodes.index(nodes[actor]))
    sizes = {node: nodes.count(node) for node in nodes}
    taken = dict.fromkeys(nodes, 0)
    ranks = []
    for index, actor in enumerate(order):
        node = nodes[actor]
        ranks.append((actor, Rank(index, len(nodes), taken[node], sizes[node])))
        taken[node] += 1
    return ranks


def reserve(ray: Any, placement: Placement) -> Any:
    """Return a placement group with a bundle for each rank: on one node if it has room for all, else on as few as can.

    Raises:
        PlanRejected: the cluster has no room.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    bundle = dict(placement.resources)
    group = placement_group([bundle] * placement.ranks, strategy="PACK")
    if not group.wait(PLACE_SECONDS):
        remove_placement_group(group)
        asked = ", ".join(f"{amount:g} {name}" for name, amount in bundle.items())
        msg = (
            f"the Ray cluster has no room for {placement.ranks} ranks of {asked} each: it has "
            f"{amounts(ray.cluster_resources(), bundle)}, of which {amounts(ray.available_resources(), bundle)} free "
            f"after {PLACE_SECONDS:.0f} seconds; add a node, free some, or ask for fewer ranks or replicas"
        )
        raise PlanRejected(msg)
    return group


def amounts(resources: Mapping[str, float], names: Mapping[str, float]) -> str:
    """Return how much there is of each of `names`, as text."""
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in names)


def start(ray: Any, placement: Placement, group: Any) -> list[Seat]:
    """Start the actors in their bundles and return them in order of ranks.

    Raises:
        DeviceLost: an actor does not start.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

    resources = dict(placement.resources)
    options = {
        "num_cpus": resources.pop("CPU", 0),
        "num_gpus": resources.pop("GPU", 0),
        "resources": resources,
        "max_restarts": 0,
        "runtime_env": {"env_vars": dict(placement.environment)} if placement.environment else None,
    }
    rank_actor = ray.remote(concurrency_groups={"signs": 1})(RankActor)
    lookout = ray.remote(max_restarts=0)(Lookout)
    actors = [
        rank_actor.options(
            **options,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
        ).remote()
        for index in range(placement.ranks)
    ]
    try:
        places = ray.get([actor.where.remote() for actor in actors], timeout=START_SECONDS)
        order = seated([place.node for place in places])
        lookouts = {}
        for node in {place.node for place in places}:
            there = {rank.index: places[actor] for actor, rank in order if places[actor].node == node}
            lookouts[node] = lookout.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote({index: (place.pid, place.log) for index, place in there.items()})
        ray.get([each.look.remote() for each in lookouts.values()], timeout=START_SECONDS)
    except ray.exceptions.RayError as error:
        msg = f"a rank's actor does not start: {' '.join(str(error).split())}"
        raise DeviceLost(msg) from None
    return [Seat(rank, actors[actor], lookouts[places[actor].node], places[actor]) for actor, rank in order]
