"""Losses of outputs that examples share: the values and gradients of a copy per example, without one."""

import pytest
import torch
import torch.nn.functional as F

from egg_sparse.games.shared_outputs import NeedsCopiesError, SharedOutput, SharedOutputs, computed

M, B, SHAPE = 4, 3, (2, 5)

TARGET = torch.rand(B, *SHAPE, dtype=torch.float64)
CLASSES = torch.tensor([0, 4, 2])


def bce(output, reduced):
    return reduced(F.binary_cross_entropy(output.sigmoid(), TARGET, reduction="none"))


def logits(output, reduced):
    return reduced(F.binary_cross_entropy_with_logits(output, TARGET, reduction="none"))


def mse(output, reduced):
    return reduced(F.mse_loss(output, TARGET, reduction="none"))


def mse_reversed(output, reduced):
    return reduced(F.mse_loss(TARGET, output.tanh(), reduction="none"))


REDUCTIONS = {
    "mean of axes": lambda loss: loss.mean((1, 2)),
    "sum of axes": lambda loss: loss.sum(dim=[1, 2]),
    "two sums": lambda loss: loss.sum(-1).sum(1),
    "flatten": lambda loss: loss.flatten(1).mean(1),
    "view": lambda loss: loss.view(B, -1).sum(dim=1),
    "view of a shape": lambda loss: torch.mean(loss.view((B, 10)), dim=-1),
    "reshape": lambda loss: torch.sum(loss.reshape(loss.shape[0], 5, 2).reshape(len(loss), -1), 1),
    "flatten of some": lambda loss: torch.flatten(loss, 1, 2).sum(1),
}

# what becomes a product, or is computed once per message
SHARED = {
    **{
        f"{loss.__name__}, {name}": (lambda output, loss=loss, reduced=reduced: loss(output, reduced))
        for loss in (bce, logits, mse, mse_reversed)
        for name, reduced in REDUCTIONS.items()
    },
    "cross entropy": lambda output: F.cross_entropy(output.flatten(1)[:, :5], CLASSES, reduction="none"),
    "cross entropy, ignored": lambda output: F.cross_entropy(
        output[:, 0], torch.tensor([0, -100, 2]), reduction="none"
    ),
    "cross entropy, another ignored": lambda output: F.cross_entropy(
        output[:, 0], CLASSES, ignore_index=4, reduction="none"
    ),
    "nll": lambda output: F.nll_loss(F.log_softmax(output[:, 1], dim=1), CLASSES, reduction="none"),
    "nll of a method": lambda output: F.nll_loss(output.log_softmax(-1)[:, 0], CLASSES, reduction="none"),
    "accuracy": lambda output: (output.view(B, -1).argmax(1) == CLASSES).double() + output.sum((1, 2)),
    "entries": lambda output: output.detach()[:, 0, 1] * TARGET[:, 0, 0] + output.double().mean((-1, -2)),
    "one entry": lambda output: F.mse_loss(output[:, 0, 1], TARGET[:, 0, 0], reduction="none"),
}


def squared(output):
    return F.mse_loss(output, TARGET, reduction="none")


def after(change, values):
    change(values)
    return values.sum((1, 2))


def assign_to_masked(values):
    values[CLASSES == 4] = 0


# what needs a copy per example
COPIED = {
    "difference": lambda output: (output - TARGET).square().sum((1, 2)),
    "reversed difference": lambda output: (TARGET - output).abs().sum((1, 2)),
    "weights": lambda output: F.binary_cross_entropy(output.sigmoid(), TARGET, weight=TARGET, reduction="none").mean(
        (1, 2)
    ),
    "pos_weight": lambda output: F.binary_cross_entropy_with_logits(
        output, TARGET, reduction="none", pos_weight=TARGET[0]
    ).mean((1, 2)),
    "root of a loss": lambda output: F.mse_loss(output, TARGET, reduction="none").sqrt().sum((1, 2)),
    "largest entry": lambda output: F.mse_loss(output, TARGET, reduction="none").amax((1, 2)),
    "kept axis": lambda output: F.mse_loss(output, TARGET, reduction="none").sum((1, 2), keepdim=True)[:, 0, 0],
    "class weights": lambda output: F.cross_entropy(output[:, 0], CLASSES, weight=TARGET[0, 0], reduction="none"),
    "smoothed labels": lambda output: F.cross_entropy(output[:, 0], CLASSES, reduction="none", label_smoothing=0.1),
    "concatenation": lambda output: torch.cat((output, TARGET), 1).square().sum((1, 2)),
    "product": lambda output: torch.einsum("bij,bij->b", output, TARGET),
    "matmul": lambda output: (output @ TARGET.transpose(1, 2)).sum((1, 2)),
    "transpose": lambda output: (output.transpose(1, 2) * TARGET.transpose(1, 2)).sum((1, 2)),
    "change of an output in place": lambda output: after(lambda values: values.clamp_(-0.5, 0.5), output),
    "change of a loss in place": lambda output: after(lambda values: values.mul_(TARGET), squared(output)),
    "assignment to an output": lambda output: after(assign_to_masked, output),
    "assignment to one entry": lambda output: after(lambda values: assign_to_masked(values[:, 0, 0]), output),
    "assignment to a loss": lambda output: after(assign_to_masked, squared(output)),
    "option inplace": lambda output: after(lambda values: F.relu(values, inplace=True), output),
    "lists as indices": lambda output: output.unsqueeze(2)[:, [0, 1], :, [1, 2]].sum((0, 2)),
    "no index": lambda output: output[()].sum((1, 2)) + output[()][:, 0, 0] * TARGET[:, 0, 0],
    "shape by keyword": lambda output: squared(output).reshape(shape=(B, -1)).sum(1),
    "view of another type": lambda output: output.view(torch.long).sum((1, 2)),
    "axis by NumPy's name": lambda output: squared(output).sum(axis=(1, 2)),
}


def results(function, outputs, batch_size=B):
    def judge(entries):
        with SharedOutputs():
            return computed(function(SharedOutput.of(entries, batch_size)))

    return torch.func.vmap(judge)(outputs)


def by_copies(function, outputs):
    return torch.stack([function(entries.expand(B, *SHAPE)) for entries in outputs])


@pytest.mark.parametrize("name", SHARED)
def test_values_and_gradients_are_those_of_copies(name):
    function = SHARED[name]
    torch.manual_seed(0)
    outputs = torch.randn(M, *SHAPE, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(M, B, dtype=torch.float64)
    found, wanted = results(function, outputs), by_copies(function, outputs)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(
        torch.autograd.grad((weights * found).sum(), outputs),
        torch.autograd.grad((weights * wanted).sum(), outputs),
        atol=1e-12,
        rtol=1e-10,
    )


@pytest.mark.parametrize("name", COPIED)
def test_what_needs_copies_is_refused(name):
    with pytest.raises(NeedsCopiesError):
        results(COPIED[name], torch.randn(M, *SHAPE, dtype=torch.float64))


def test_an_average_over_examples_needs_copies():
    for function in (
        lambda output: F.mse_loss(output, TARGET, reduction="none").mean(),
        lambda output: F.mse_loss(output, TARGET),
        lambda output: F.mse_loss(output, TARGET, reduction="none").view(-1),
        lambda output: output.mean(0),
    ):
        with pytest.raises(NeedsCopiesError):
            results(function, torch.randn(M, *SHAPE, dtype=torch.float64))


def test_a_missing_target_concerns_its_example_alone():
    target = torch.where(CLASSES.view(B, 1, 1) == 4, torch.nan, TARGET)

    def function(output):
        return F.mse_loss(output, target, reduction="none").sum((1, 2))

    outputs = torch.randn(M, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(results(function, outputs), by_copies(function, outputs), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-13, 0.5, 1 - 1e-7, 1.0])
def test_binary_cross_entropy_near_0_and_1_has_torchs_value_and_gradient(value, dtype):
    target = torch.tensor([[0.0], [1.0], [0.3]], dtype=dtype)
    output = torch.tensor([[value]], dtype=dtype, requires_grad=True)

    def function(shared):
        return F.binary_cross_entropy(shared, target, reduction="none").sum(1)

    found = results(function, output)
    wanted = torch.stack([function(entries.expand(3, 1)) for entries in output])
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)
    for example in range(3):
        gradients = [torch.autograd.grad(loss[0, example], output, retain_graph=True)[0] for loss in (found, wanted)]
        torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("distance", [1e-1, 1e-2, 1e-3, 0.0])
def test_squared_errors_of_close_outputs_are_exact(distance):
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(B, 784, generator=generator)
    outputs = target + distance * torch.randn(B, 784, generator=generator)
    found = results(lambda output: F.mse_loss(output, target, reduction="none").mean(1), outputs)
    wanted = torch.stack([(entries - target).double().square().mean(1) for entries in outputs])
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-12)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("distance", [1e-1, 1e-2, 1e-3])
def test_gradients_of_squared_errors_of_close_outputs_are_exact(distance):
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(B, 784, generator=generator)
    outputs = (target + distance * torch.randn(B, 784, generator=generator)).requires_grad_()
    found = results(lambda output: F.mse_loss(output, target, reduction="none").sum(1), outputs)
    (gradient,) = torch.autograd.grad(found.diagonal().sum(), outputs)
    torch.testing.assert_close(gradient, 2 * (outputs - target).detach(), rtol=1e-5, atol=1e-5 * distance)


@pytest.mark.parametrize("name", ["mse_loss", "binary_cross_entropy_with_logits"])
@pytest.mark.parametrize("reduction", ["mean of axes", "two sums"])
def test_gradients_of_outputs_and_targets_can_be_differentiated(name, reduction):
    def function(outputs, target):
        losses = getattr(F, name)
        return results(lambda output: REDUCTIONS[reduction](losses(output, target, reduction="none")), outputs)

    torch.manual_seed(0)
    outputs = torch.randn(M, *SHAPE, dtype=torch.float64, requires_grad=True)
    target = torch.rand(B, *SHAPE, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (outputs, target))
    assert torch.autograd.gradgradcheck(function, (outputs, target))


@pytest.mark.parametrize("score", [-1e4, -30.0, -1e-3, 0.0, 1e-3, 30.0, 1e4])
def test_binary_cross_entropy_of_large_scores_has_torchs_value_and_gradient(score):
    target = torch.tensor([[0.0], [1.0], [0.3]])
    scores = torch.tensor([[score]], requires_grad=True)

    def function(output):
        return F.binary_cross_entropy_with_logits(output, target, reduction="none").sum(1)

    found, wanted = results(function, scores), function(scores.expand(3, 1))[None]
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-5)
    for example in range(3):
        gradients = [torch.autograd.grad(loss[0, example], scores, retain_graph=True)[0] for loss in (found, wanted)]
        torch.testing.assert_close(*gradients, atol=1e-12, rtol=1e-5)


def test_roots_of_squared_errors_of_0_are_finite_with_finite_gradients():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(30, 50, generator=generator)
    outputs = target[:20].clone().requires_grad_()
    found = results(lambda output: F.mse_loss(output, target, reduction="none").mean(1).sqrt(), outputs, len(target))
    assert found.isfinite().all()
    assert found.diagonal().max() < 1e-6
    different = 1 - torch.eye(*found.shape)  # the pairs of which plain calls have finite gradients, too
    (gradient,) = torch.autograd.grad((different * found).sum(), outputs)
    assert gradient.isfinite().all()


def test_shared_outputs_look_like_tensors():
    seen = []

    def judge(entries):
        for output in (SharedOutput.of(entries, B), entries.expand(B, *SHAPE)):
            assert isinstance(output, torch.Tensor)
            described = (
                output.shape,
                output.size(0),
                output.dim(),
                output.ndim,
                output.dtype,
                output.device,
                len(output),
            )
            with SharedOutputs():
                seen.append((described, output.requires_grad, output.is_floating_point(), output.numel()))
        return entries

    torch.func.vmap(judge)(torch.randn(M, *SHAPE, requires_grad=True))
    assert seen[0] == seen[1]
    assert seen[0][1] is True


def test_large_outputs_are_never_copied_per_example():
    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.largest = max(self.largest, result.untyped_storage().nbytes() // 4)
            return result

    target, outputs = torch.rand(50, 60), torch.rand(40, 60, requires_grad=True)

    def judge(entries):
        with SharedOutputs():
            shared = SharedOutput.of(entries, 50)
            return F.binary_cross_entropy(shared, target, reduction="none").mean(1)

    with Sizes() as sizes:
        torch.func.vmap(judge)(outputs).sum().backward()
    assert sizes.largest <= 3000
