"""Claim 21: puzzles on graphs teach what a node is part of.

The graph of a layout of FourRooms has a node for each free cell and an edge between neighbours. No puzzle is told about
its rooms. A node's features are random numbers that spread along the edges, split by the distance of the spreading. The
weights of these distances are learned on some layouts and used on others.

Puzzles: "neighbours", find the end of a short walk from each node among the ends of others (InfoNCE [1]); "community",
make the features of linked nodes more alike than those of others with as many links (modularity [0]).

[0] Newman 2006, "Modularity and community structure in networks".
[1] Perozzi et al. 2014, "DeepWalk: Online Learning of Social Representations".
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from minigrid.core.constants import OBJECT_TO_IDX
from scipy.sparse.csgraph import shortest_path
from sklearn.cluster import KMeans
from sklearn.linear_model import Ridge
from sklearn.metrics import normalized_mutual_info_score, r2_score
from torch import Tensor, nn
from torch.nn import functional as F

from agents.claims.claim import Claim, Verdict, judge
from envs.minigrid.worlds import make
from rlpre.evaluation.page import show_interval
from rlpre.evaluation.stats import mean_interval
from rlpre.objectives.losses import info_nce

WORLD, ROOMS = "MiniGrid-FourRooms-v0", 4
LAYOUTS, HELD_OUT, FRESH = 8, 6, 8  # to learn from, and to test on; draws of fresh weights
HOPS, WIDTH = (0, 1, 2, 4, 8, 16, 32, 64), 32  # distances of the spreading, and random numbers of a node
WALK = 10  # steps between the neighbours of a pair, as in DeepWalk [1]
STEPS, RATE, PAIRS = 100, 0.05, 2000  # of learning, and pairs of nodes of the distance probe


@dataclass(frozen=True)
class Graph:
    """A layout."""

    links: Tensor  # (n, n), 0 or 1
    room: np.ndarray  # of each node, (n,)
    bands: Tensor  # (hops, n, d): what random features lose between two of `HOPS`, and what is left, each of length 1


def measure(directory: Path, seeds: int, rewired: bool = False) -> Verdict:
    """The gain of the puzzle in agreement (NMI) with the rooms of new layouts; ``rewired`` puzzles have wrong links."""
    arms: dict[str, list[np.ndarray]] = {name: [] for name in ("fresh", *PUZZLES)}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        graphs = [layout(int(each), rng) for each in rng.integers(2**31, size=LAYOUTS + HELD_OUT)]
        torch.manual_seed(seed)
        learnt = [shuffled(graph, rng) for graph in graphs[:LAYOUTS]] if rewired else graphs[:LAYOUTS]
        fresh = [nn.Linear(len(HOPS), 1, bias=False) for _ in range(FRESH)]
        models = {"fresh": fresh} | {name: [solved(learnt, puzzle, fresh[0])] for name, puzzle in PUZZLES.items()}
        for name, each in models.items():
            found = [scores(graph, model, seed) for graph in graphs[LAYOUTS:] for model in each]
            arms[name].append(np.mean(found, axis=0))
    nmi, distance = ({name: np.array(found)[:, k] for name, found in arms.items()} for k in (0, 1))
    probes = ", ".join(f"{name} {show_interval(mean_interval(found))}" for name, found in distance.items())
    measured = (
        "gain of the puzzle of neighbours in NMI of clusters and rooms on new layouts; of the puzzle of communities "
        f"{show_interval(mean_interval(nmi['community'] - nmi['fresh']))}; R2 of a probe of the distance {probes}"
    )
    return judge(nmi["neighbours"].tolist(), nmi["fresh"].tolist(), 0.05, measured, "fresh weights, NMI")


def layout(seed: int, rng: np.random.Generator) -> Graph:
    """The graph of one layout, with random features that spread along its links; half of them stay at each step."""
    world = make(WORLD)
    world.reset(seed=seed)
    at = np.argwhere((kinds := world.grid_env.grid.encode()[..., 0]) != OBJECT_TO_IDX["wall"])  # (x, y)
    links = torch.tensor(np.abs(at[:, None] - at).sum(-1) == 1, dtype=torch.float32)
    # a cell in the gap of a wall belongs to the room above or to the left
    room = 2 * (at[:, 0] > len(kinds) // 2) + (at[:, 1] > len(kinds) // 2)
    walk = (torch.eye(len(links)) + links / links.sum(1, keepdim=True).clamp_min(1)) / 2
    features, found = torch.tensor(rng.standard_normal((len(links), WIDTH)), dtype=torch.float32), []
    for steps in np.diff(HOPS):
        before, features = features, torch.matrix_power(walk, int(steps)) @ features
        found.append(before - features)
    bands = [*found, features - features.mean(0)]
    return Graph(links, room, torch.stack([F.normalize(band, dim=1) for band in bands]))


def shuffled(graph: Graph, rng: np.random.Generator) -> Graph:
    """The graph whose links belong to other nodes than its features."""
    order = rng.permutation(len(graph.room))
    return Graph(graph.links[order][:, order], graph.room, graph.bands)


def embed(graph: Graph, model: nn.Linear) -> Tensor:
    """Features (n, d) of length 1: the weighted sum of the bands."""
    return F.normalize(model(graph.bands.permute(1, 2, 0))[..., 0], dim=1)


def neighbours(graph: Graph, features: Tensor) -> Tensor:
    """The loss of finding the end of a walk from each node among the ends of the others."""
    nodes = torch.arange(len(features))
    chosen = nodes
    for _ in range(WALK):
        chosen = torch.multinomial(graph.links[chosen], 1)[:, 0]
    return info_nce(features, features[chosen], nodes, chosen)[0]


def community(graph: Graph, features: Tensor) -> Tensor:
    """Minus the modularity of the similarities of features."""
    degree = graph.links.sum(1)
    expected = degree[:, None] * degree / degree.sum()
    return -((graph.links - expected) * (features @ features.T)).sum() / degree.sum()


PUZZLES = {"neighbours": neighbours, "community": community}


def solved(graphs: list[Graph], puzzle: Callable[[Graph, Tensor], Tensor], fresh: nn.Linear) -> nn.Linear:
    """The weights after solving a puzzle on graphs."""
    model = copy.deepcopy(fresh)
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    for step in range(STEPS):
        graph = graphs[step % len(graphs)]
        optimizer.zero_grad()
        puzzle(graph, embed(graph, model)).backward()
        optimizer.step()
    return model


@torch.no_grad()
def scores(graph: Graph, model: nn.Linear, seed: int) -> tuple[float, float]:
    """NMI of as many clusters as rooms with the rooms, and R2 of a linear probe of the distance of two nodes."""
    features = embed(graph, model).numpy()
    clusters = KMeans(ROOMS, n_init=4, random_state=seed).fit_predict(features)
    distance = shortest_path(graph.links.numpy(), unweighted=True)
    one, other = np.random.default_rng(seed).integers(len(features), size=(2, PAIRS))
    inputs, half = np.abs(features[one] - features[other]), PAIRS // 2
    probe = Ridge().fit(inputs[:half], distance[one, other][:half])
    r2 = r2_score(distance[one, other][half:], probe.predict(inputs[half:]))
    return float(normalized_mutual_info_score(graph.room, clusters)), float(r2)


CLAIM = Claim(
    21,
    "Puzzles on a graph (find neighbours, find communities) teach what a node is part of.",
    measure,
    "the same features with fresh weights; and puzzles whose links belong to other nodes",
)
