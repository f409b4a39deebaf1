"""The emulated GPU itself: it computes what the CPU computes, refuses to mix with it, and counts as CUDA does."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


class Twice(torch.autograd.Function):
    """Makes tensors on its argument's device, forward and backward."""

    @staticmethod
    def forward(ctx, x):
        return x + x * torch.ones(x.shape[-1], device=x.device, dtype=x.dtype)

    @staticmethod
    def backward(ctx, grad):
        assert grad.device.type in ("cuda", "cpu")
        return grad * torch.full((grad.shape[-1],), 2.0, device=grad.device, dtype=grad.dtype)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.layers = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout())

    def forward(self, symbols):
        x = self.embedding(symbols)
        x = self.layers(x[:, None, None])
        rows = torch.func.vmap(lambda row: row.sin() + torch.randn_like(row), randomness="different")(x)
        x = checkpoint(lambda y: F.gumbel_softmax(Twice.apply(y), hard=True) * y, rows, use_reentrant=False)
        x[:, 1:] = x[:, 1:].cumsum(1)
        drawn = torch.multinomial(x.detach().softmax(1), 2)
        return F.cross_entropy(x, drawn[:, 0]) + x[x > 0.5].sum() + torch.rand(3, device=x.device).sum()


def trained(network, symbols, optimizer):
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = network(symbols)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True, "amsgrad": True}])
def test_training_is_that_of_the_cpu(accelerator, options):
    torch.manual_seed(1)
    on_cpu, symbols = Network().double(), torch.arange(6)
    on_device = Network().double()
    on_device.load_state_dict(on_cpu.state_dict())
    parameters = list(on_device.parameters())
    optimizer = torch.optim.Adam(on_device.parameters(), **options)  # before the move, as a Trainer is given it
    accelerator.to(on_device)
    assert all(now is then for now, then in zip(on_device.parameters(), parameters, strict=True))
    torch.manual_seed(2)
    expected = trained(on_cpu, symbols, torch.optim.Adam(on_cpu.parameters(), **options))
    torch.manual_seed(2)
    found = trained(on_device, accelerator.to(symbols), optimizer)
    torch.testing.assert_close(accelerator.host(found), expected, atol=1e-12, rtol=1e-12)
    for name, value in on_device.state_dict().items():
        assert value.device == accelerator.device
        torch.testing.assert_close(accelerator.host(value), on_cpu.state_dict()[name], atol=1e-12, rtol=1e-12)
    for one, other in zip(on_device.parameters(), on_cpu.parameters(), strict=True):
        torch.testing.assert_close(accelerator.host(one.grad), other.grad, atol=1e-12, rtol=1e-12)


def test_says_where_it_is(accelerator):
    made = [
        torch.zeros(2, device="cuda"),
        torch.arange(3, device=accelerator.device),
        torch.tensor([1.0], device="cuda:0"),
        torch.rand(2, device=torch.device("cuda")),
        torch.ones(2).cuda(),
        torch.ones(2).to("cuda", torch.float64),
        torch.zeros(1, device="cuda").new_tensor([3]),
        torch.zeros(2, 2).to("cuda").view(4)[1:].expand(2, 3),
    ]
    for tensor in made:
        assert tensor.device == accelerator.device
        assert (tensor.is_cuda, tensor.is_meta, tensor.get_device()) == (True, False, 0)
    seen = []
    torch.func.vmap(lambda row: seen.append((row.device, row.is_cuda)) or row)(made[0][None])
    assert seen == [(accelerator.device, True)]
    assert made[0].cpu().device.type == "cpu"
    assert accelerator.host(made[2]).tolist() == [1.0]
    assert accelerator.host(made[5]).dtype == torch.float64


def test_nothing_outlasts_it(accelerator):
    """A context within the context, of which the outer one sees nothing; and the rest of PyTorch is as it was."""
    from emulated_accelerator import emulated

    engine = torch.autograd.Variable._execution_engine
    swap = torch.__future__.get_swap_module_params_on_conversion()
    available = torch.cuda.is_available()
    with emulated() as inner:
        assert torch.cuda.is_available() == available
        with accelerator.count() as counted, inner.count():
            torch.ones(1, device="cuda").item()
    assert len(counted.synchronizations) == 1
    assert torch.autograd.Variable._execution_engine is engine
    assert torch.__future__.get_swap_module_params_on_conversion() == swap


MIXTURES = {
    "add": lambda there, here: there + here,
    "matmul": lambda there, here: there @ here.mT,
    "linear": lambda there, here: F.linear(there, here),
    "cat": lambda there, here: torch.cat((there, here)),
    "stack": lambda there, here: torch.stack((there[0, 0], here[0, 0])),
    "where": lambda there, here: torch.where(there > 0, here, 0.0),
    "where, condition": lambda there, here: torch.where(here > 0, there, 0.0),
    "in place": lambda there, here: there.add_(here),
    "in place, the other way": lambda there, here: here.mul_(there),
    "gather": lambda there, here: there.gather(1, here.long()),
    "embedding": lambda there, here: F.embedding(here.long().abs(), there),
    "out": lambda there, here: torch.mul(there, 2, out=here),
    "set a slice from an index": lambda there, here: here.__setitem__(here > 0, there[there > 0]),
    "nll": lambda there, here: F.nll_loss(there, torch.zeros(2, dtype=torch.long)),
    "vmap": lambda there, here: torch.func.vmap(lambda row: row + here)(there),
    "backward": lambda there, here: torch.autograd.grad(there.requires_grad_().exp(), there, here),
    "buffer": lambda there, here: nn.BatchNorm1d(3)(there),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_refuses_to_mix(accelerator, name):
    here = torch.randn(2, 3).clamp(-1, 1)
    with pytest.raises(RuntimeError, match="device"):
        MIXTURES[name](here.to("cuda"), here.clone())


@pytest.mark.parametrize("convert", [lambda x: x.numpy(), np.asarray, lambda x: x.detach().numpy(force=False)])
def test_refuses_to_be_an_array(accelerator, convert):
    with pytest.raises(TypeError, match="cuda:0"):
        convert(torch.zeros(2, device="cuda"))


def test_allows_what_cuda_allows(accelerator):
    x, number = torch.arange(6.0).view(2, 3).to("cuda"), torch.tensor(2.0)
    with accelerator.count() as counted:
        results = [x + number, number * x, x.pow(number), torch.where(x > 1, number, x), x.masked_fill(x > 1, number)]
        x[0] = 3
        x[:, 1] = number
    assert all(result.device == accelerator.device for result in results)
    assert accelerator.host(x).tolist() == [[3, 2, 3], [3, 2, 5]]
    assert counted.synchronizations == counted.copies_to_device == []


SYNCHRONIZING = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool((x > 0).all()),
    "int": lambda x: int(x.sum()),
    "float": lambda x: float(x.sum()),
    "if": lambda x: 1 if x.sum() > 0 else 0,
    "format": lambda x: f"{x.sum():.2f}",
    "index of a list": lambda x: [0, 1, 2][x.argmax() % 2],
    "tolist": lambda x: x.tolist(),
    "tolist of a number": lambda x: x.sum().tolist(),
    "cpu": lambda x: x.cpu(),
    "synchronize": lambda x: torch.cuda.synchronize(),
    "stream": lambda x: torch.cuda.current_stream(x.device).synchronize(),
    "to cpu": lambda x: x.to("cpu", torch.float64),
    "copy_": lambda x: torch.empty(2, 3).copy_(x),
    "nonzero": lambda x: x.nonzero(as_tuple=True),
    "argwhere": lambda x: torch.argwhere(x),
    "where": lambda x: torch.where(x > 0),
    "mask": lambda x: x[x > 0],
    "mask of rows": lambda x: x[x[:, 0] > -9, 1],
    "set by a mask": lambda x: x.__setitem__(x > 0, x.sum()),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(return_counts=True),
    "unique rows": lambda x: x.unique(dim=0),
    "unique_consecutive": lambda x: x.unique_consecutive(),
    "equal": lambda x: torch.equal(x, x + 1),
    "allclose": lambda x: torch.allclose(x, x),
    "repeat_interleave": lambda x: x.repeat_interleave(torch.ones(2, dtype=torch.long, device=x.device), 0),
    "bincount": lambda x: x.argmax(1).bincount(),
    "cholesky": lambda x: torch.linalg.cholesky(x @ x.mT + torch.eye(2, device=x.device)),
    "normal": lambda x: torch.normal(x, x.abs()),
    "mean by hand": lambda x: sum(x.flatten().tolist()) / x.numel(),
}
NOT_SYNCHRONIZING = {
    "shape": lambda x: (x.shape, len(x), x.numel(), x.device, x.dtype),
    "arithmetic": lambda x: (x @ x.mT).softmax(1).sum() - x.var(),
    "order": lambda x: (x.topk(2), x.sort(), x.argmax(1), x.cumsum(1)),
    "set a number by a mask": lambda x: x.__setitem__(x > 0, 0),
    "masked_fill": lambda x: x.masked_fill(x > 0, 1.0),
    "indices on the device": lambda x: x[x.argmax(0)],
    "one_hot": lambda x: F.one_hot(x.argmax(1), 3),
    "random": lambda x: (torch.randn_like(x), x.sigmoid().bernoulli(), F.dropout(x), x.softmax(1).multinomial(5, True)),
    "repeat_interleave": lambda x: x.repeat_interleave(torch.ones_like(x[:, 0]).long(), 0, output_size=2),
    "on the CPU": lambda x: (torch.ones(2).sum().item(), torch.ones(2).tolist(), torch.ones(2).nonzero()),
    "non-blocking": lambda x: x.to("cpu", non_blocking=True),
    "event": lambda x: (torch.cuda.Event().record(), torch.cuda.Event().synchronize()),
    "made there": lambda x: (torch.zeros(3, device=x.device), torch.full((), 2.0, device=x.device), x.new_ones(2)),
}
COPYING = {
    "to": lambda x: torch.ones(2).to(x.device),
    "cuda": lambda x: torch.ones(2).cuda(),
    "pinned": lambda x: torch.ones(2).pin_memory().to(x.device, non_blocking=True),
    "tensor": lambda x: torch.tensor([1, 2], device="cuda"),
    "as_tensor": lambda x: torch.as_tensor(np.ones(2), device=x.device),
    "new_tensor": lambda x: x.new_tensor([1.0]),
    "copy_": lambda x: x.copy_(torch.ones(2, 3)),
    "set a slice": lambda x: x.__setitem__(0, torch.ones(3)),
    "indices of the CPU": lambda x: x[torch.tensor([1, 0])],
    "indices in a list": lambda x: x[[1, 0]],
    "indices of NumPy": lambda x: x[:, np.array([1, 0])],
}


@pytest.mark.parametrize("name", SYNCHRONIZING)
def test_counts_each_synchronization_once(accelerator, name):
    x = torch.randn(2, 3).to("cuda")
    with accelerator.count() as counted:
        SYNCHRONIZING[name](x)
    assert len(counted.synchronizations) == 1, counted
    assert counted.synchronizations[0].startswith("tests/test_emulated_accelerator.py:")
    assert counted.copies_to_device == []
    by_copy = ("tolist", "tolist of a number", "mean by hand", "cpu", "to cpu", "copy_")
    assert len(counted.copies_to_host) == (name in by_copy)


@pytest.mark.parametrize("name", NOT_SYNCHRONIZING)
def test_counts_nothing_else(accelerator, name):
    x = torch.randn(2, 3).to("cuda")
    with accelerator.count() as counted:
        NOT_SYNCHRONIZING[name](x)
    assert counted.synchronizations == counted.copies_to_device == []


@pytest.mark.parametrize("name", COPYING)
def test_counts_each_copy_once(accelerator, name):
    x = torch.randn(2, 3).to("cuda")
    with accelerator.count() as counted:
        COPYING[name](x)
    assert len(counted.copies_to_device) == 1, counted
    assert counted.synchronizations == []


def test_counts_in_the_backward_pass(accelerator):
    x = torch.randn(5).to("cuda").requires_grad_()
    loss = x[x > 0].sum()
    x.register_hook(lambda grad: grad if grad.sum() > 0 else None)
    with accelerator.count() as counted:
        loss.backward()
    assert len(counted.synchronizations) == 2  # the mask again, and the hook


def test_same_values_as_on_the_cpu(accelerator):
    x = torch.randn(2, 3)
    functions = {**SYNCHRONIZING, **NOT_SYNCHRONIZING}
    for name, function in functions.items():
        results = []
        for device in ("cpu", "cuda"):
            torch.manual_seed(3)
            results.append(function(x.to(device, copy=True)))
        if name == "shape":
            continue
        flat = [torch.utils._pytree.tree_leaves(result) for result in results]
        for one, other in zip(*flat, strict=True):
            if not isinstance(one, torch.Tensor):
                assert one == other, name
                continue
            other = other if other.device == one.device else accelerator.host(other)
            torch.testing.assert_close(other, one, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(accelerator, dtype):
    x, layer = torch.randn(2, 3).to("cuda"), nn.Linear(3, 4).to("cuda")
    with torch.autocast("cuda", dtype=dtype):
        hidden = layer(x)
        assert (hidden.dtype, hidden.softmax(1).dtype, hidden.sum().dtype) == (dtype, torch.float32, torch.float32)
        assert torch.func.vmap(layer)(x).dtype == dtype
        with torch.autocast("cuda", enabled=False):
            assert layer(x).dtype == torch.float32
    hidden.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert layer(x).dtype == torch.float32


def test_gradient_scaler(accelerator):
    layer = nn.Linear(3, 4).to("cuda")
    optimizer, scaler = torch.optim.SGD(layer.parameters(), lr=1.0), torch.amp.GradScaler("cuda", init_scale=8.0)
    before = accelerator.host(layer.weight).clone()
    with torch.autocast("cuda", dtype=torch.float16):
        loss = layer(torch.ones(2, 3, device="cuda")).sum()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close(accelerator.host(layer.weight), before - 2)


def test_shapes_changed_in_place(accelerator):
    x = torch.arange(6.0).view(2, 3).to("cuda")
    assert accelerator.host(x.t_() @ torch.ones(2, device="cuda")).tolist() == [3, 5, 7]
    assert x.unsqueeze_(1).shape == accelerator.host(x).shape == (3, 1, 2)
    with pytest.raises(NotImplementedError, match="resize_"):
        x.resize_(2)
