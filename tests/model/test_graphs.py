"""Graphs of the networks, captured or compiled: what can be said without a GPU (the rest: tests/gpu/test_model.py)."""

import torch
from torch import Tensor

from mmsada_hpc.model.backbones import StreamSpec
from mmsada_hpc.model.batch_norm import GroupContext
from mmsada_hpc.model.graphs import Graphs, _key
from mmsada_hpc.model.i3d import Mixed
from mmsada_hpc.model.streams import MultiStream

STREAMS = {"ear": StreamSpec("conv1d", 3), "skin": StreamSpec("conv1d", 2)}


def network() -> MultiStream:
    torch.manual_seed(0)
    return MultiStream(STREAMS, width=0.1, group_size=2, test_statistics="mixture").train()


def clips(seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {"ear": torch.randn(4, 64, 3, generator=rng), "skin": torch.randn(4, 64, 2, generator=rng)}


def test_warming_up_leaves_neither_statistics_nor_gradients() -> None:
    model = network()
    model(clips(1), (0, 1))
    before = {name: x.clone() for name, x in model.named_buffers()}
    graphs = Graphs(model)
    with graphs._untouched():
        graphs._run(clips(2), (0, 1))
    assert all(torch.equal(x, before[name]) for name, x in model.named_buffers())
    assert all(p.grad is None for p in model.parameters())
    assert any(x.abs().sum() > 0 for name, x in before.items() if name.endswith("sum_DSC"))


def test_leaves_of_a_capture_lie_where_the_parameters_lie() -> None:
    model = network()
    leaves = Graphs(model)._leaves()
    for name, parameter in model.named_parameters():
        assert leaves[name].data_ptr() == parameter.data_ptr() and leaves[name].is_leaf
        assert leaves[name] is not parameter and leaves[name].requires_grad


def test_what_a_capture_holds_fast_makes_another_one() -> None:
    model = network()
    parameters = list(model.parameters())
    key = _key(clips(1), (0, 1), parameters)
    assert key == _key(clips(2), (0, 1), parameters)
    assert key != _key(clips(1), (0, 0), parameters)
    assert key != _key({name: x[:2] for name, x in clips(1).items()}, (0, 1), parameters)
    parameters[3].data = parameters[3].data.clone()
    assert key != _key(clips(1), (0, 1), parameters)


def test_torch_compile_sees_a_block_whole_and_changes_nothing() -> None:
    """What `train.accelerate=compile` hands over, traced and differentiated ahead of time, run as it is."""
    contexts = [GroupContext(group_size=2, test="mixture") for _ in range(2)]
    plain, compiled = (Mixed(8, (4, 4, 8, 4, 4, 4), context).train() for context in contexts)
    compiled.load_state_dict(plain.state_dict())
    compiled.compile(dynamic=False, fullgraph=True, backend="aot_eager")
    x_NCTHW = torch.rand(4, 8, 3, 5, 5).to(memory_format=torch.channels_last_3d)
    for domains in ((0, 1), (0, 0), (0, 1)):
        results = []
        for block, context in zip((plain, compiled), contexts, strict=True):
            with context.recorded(domains):
                results.append(block(x_NCTHW))
            results[-1].square().sum().backward()
        assert torch.equal(*results)
    for theirs, ours in zip(plain.buffers(), compiled.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    for parameter, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        assert parameter.grad is not None and other.grad is not None and torch.equal(other.grad, parameter.grad)
