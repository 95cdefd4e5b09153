"""A network as a chain of stages: its forward pass, traced, and cut wherever a single value passes through."""

from torch import fx, nn


class _Blocks(fx.Tracer):
    """Opens containers only; the blocks inside stay whole, so that they still tell training from evaluation."""

    def __init__(self, containers: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self.containers = containers

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return type(module) not in self.containers


def trace(network: nn.Module, containers: tuple[type[nn.Module], ...]) -> fx.Graph:
    """Records the forward pass of ``network``, which calls blocks and the functions between them."""
    return _Blocks(containers).trace(network)


def without_head(network: nn.Module, graph: fx.Graph) -> fx.Graph:
    """Takes the last linear layer or convolution, a classifier's own, out of ``graph``."""
    layers = [node for node in graph.nodes if isinstance(_called(network, node), nn.Linear | nn.Conv2d)]
    layers[-1].replace_all_uses_with(layers[-1].args[0])
    graph.erase_node(layers[-1])
    return graph


def split(network: nn.Module, graph: fx.Graph) -> list[nn.Module]:
    """Cuts the forward pass before each block that holds kernels.

    Norms, activations, pooling and functions belong to the block before them. Branches that run side by side stay in
    one stage.

    Args:
        network: owns the blocks, which the stages share with it under the same names.
        graph: its forward pass, from one tensor to one.

    Returns:
        Stages whose composition is the forward pass.
    """
    stages: list[nn.Module] = []
    part: list[fx.Node] = []
    entering, *nodes = graph.nodes
    place = {node: index for index, node in enumerate(graph.nodes)}
    alive, begun = {entering}, False
    for node in nodes:
        alive = {value for value in alive if any(place[user] >= place[node] for user in value.users)}
        block = _called(network, node)
        heavy = block is not None and any(parameter.ndim > 1 for parameter in block.parameters())
        if node.op == "output" or (heavy and begun and len(alive) == 1):
            (leaving,) = alive
            stages.append(_stage(network, part, entering, leaving))
            entering, part = leaving, []
        begun = begun or heavy
        part.append(node)
        alive.add(node)
    return stages


def _stage(network: nn.Module, nodes: list[fx.Node], entering: fx.Node, leaving: fx.Node) -> fx.GraphModule:
    graph = fx.Graph()
    copies = {entering: graph.placeholder("x")}
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[leaving])
    return fx.GraphModule(network, graph)


def _called(network: nn.Module, node: fx.Node) -> nn.Module | None:
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None
