"""Muon against slow references: AdamW of torch, Muon of torch, and a loop of matrix products."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from wsflow.optim import NEWTON_SCHULZ, Muon, orthogonalise


def gradients(params: list[nn.Parameter], steps: int) -> list[list[Tensor]]:
    return [[torch.randn_like(p) for p in params] for _ in range(steps)]


def run(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], given: list[list[Tensor]]) -> list[Tensor]:
    for grads in given:
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad.clone()
        optimizer.step()
    return [p.detach().clone() for p in params]


def parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]


def twins(params: list[nn.Parameter]) -> list[nn.Parameter]:
    return [nn.Parameter(p.detach().clone()) for p in params]


class TestOrthogonalise:
    @pytest.mark.parametrize("shape", [(1, 64, 16), (1, 16, 64), (5, 24, 12), (3, 8, 100)], ids=str)
    def test_singular_values_are_near_one(self, shape: tuple[int, ...]) -> None:
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert values.min() > 0.6
        assert values.max() < 1.3

    def test_singular_values_of_every_size_above_a_hundredth_come_near_one(self) -> None:
        u, v = (torch.linalg.qr(torch.randn(12, 12))[0] for _ in range(2))
        values = torch.linalg.svdvals(orthogonalise((u * torch.logspace(-2, 0, 12)) @ v[None]))
        assert values.min() > 0.6
        assert values.max() < 1.3

    def test_singular_vectors_and_signs_stay(self) -> None:
        m = torch.randn(9, 5, dtype=torch.float64)
        u, _, vh = torch.linalg.svd(m, full_matrices=False)
        inner = u.T @ orthogonalise(m[None])[0] @ vh.T
        torch.testing.assert_close(inner, inner.diag().diag(), rtol=0, atol=1e-12)
        assert inner.diag().min() > 0.6

    def test_size_does_not_matter_and_zero_stays_zero(self) -> None:
        m = torch.randn(2, 8, 12, dtype=torch.float64)
        torch.testing.assert_close(orthogonalise(1e-3 * m), orthogonalise(m))
        assert torch.equal(orthogonalise(0 * m), 0 * m)

    @pytest.mark.parametrize("shape", [(2, 6, 50), (3, 40, 5)], ids=str)
    def test_wide_matrices_take_the_steps_of_the_iteration(self, shape: tuple[int, ...]) -> None:
        m = torch.randn(shape, dtype=torch.float64)
        a, b, c = NEWTON_SCHULZ
        x = m / m.flatten(1).norm(dim=1)[:, None, None]
        for _ in range(5):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        torch.testing.assert_close(orthogonalise(m), x)

    def test_a_batch_is_its_matrices_one_by_one(self) -> None:
        m = torch.randn(4, 10, 6, dtype=torch.float64)
        torch.testing.assert_close(orthogonalise(m), torch.cat([orthogonalise(one[None]) for one in m]))


def muon_by_hand(
    start: Tensor, grads: list[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
) -> Tensor:
    """One matrix, as Jordan et al. (2024) write it."""
    a, b, c = NEWTON_SCHULZ
    weight, buffer = start.clone(), torch.zeros_like(start)
    for grad in grads:
        buffer = momentum * buffer + (1 - momentum) * grad
        x = (1 - momentum) * grad + momentum * buffer
        x = x / x.norm()
        for _ in range(5):
            x = a * x + b * (x @ x.T @ x) + c * (x @ x.T @ x @ x.T @ x)
        rows, columns = start.shape
        weight = weight - lr * weight_decay * weight - lr * max(1, rows / columns) ** 0.5 * x
    return weight


class TestStep:
    @pytest.mark.parametrize("weight_decay", [0.0, 0.1])
    def test_matrices_take_the_step_of_muon(self, weight_decay: float) -> None:
        params = parameters((20, 8), (8, 20), (20, 8), (9, 9))
        starts, given = [p.detach().clone() for p in params], gradients(params, 4)
        ours = run(Muon(params, muon_lr=0.03, weight_decay=weight_decay), params, given)
        for i, one in enumerate(ours):
            expected = muon_by_hand(starts[i], [grads[i] for grads in given], 0.03, weight_decay=weight_decay)
            torch.testing.assert_close(one, expected, rtol=1e-9, atol=1e-9)

    @pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
    def test_matrices_take_the_step_of_torch(self) -> None:
        """Torch orthogonalises in bfloat16, so its steps agree to about a hundredth."""
        params = parameters((20, 8), (8, 20))
        other, starts, given = twins(params), [p.detach().clone() for p in params], gradients(params, 3)
        ours = run(Muon(params, muon_lr=0.03, weight_decay=0.1), params, given)
        theirs = run(torch.optim.Muon(other, lr=0.03, weight_decay=0.1), other, given)
        for one, reference, start in zip(ours, theirs, starts, strict=True):
            assert (one - reference).norm() < 0.02 * (reference - start).norm()

    @pytest.mark.parametrize("weight_decay", [0.0, 0.1])
    def test_everything_else_takes_the_step_of_adamw(self, weight_decay: float) -> None:
        params = parameters((7,), (40, 7), (3, 9, 9), (1, 30))
        other, given = twins(params), gradients(params, 5)
        ours = run(Muon(params, lr=0.01, weight_decay=weight_decay), params, given)
        theirs = run(torch.optim.AdamW(other, 0.01, (0.9, 0.98), weight_decay=weight_decay), other, given)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)

    def test_a_parameter_whose_gradients_begin_late(self) -> None:
        params = parameters((7,), (5,))
        other = twins(params)
        for optimizer, mine in (
            (Muon(params, lr=0.01), params),
            (torch.optim.AdamW(other, 0.01, (0.9, 0.98), weight_decay=0.0), other),
        ):
            torch.manual_seed(1)
            for step in range(6):
                for p, since in zip(mine, (0, 3), strict=True):
                    p.grad = torch.randn_like(p) if step >= since else None
                optimizer.step()
        torch.testing.assert_close(params, other, rtol=1e-6, atol=1e-9)

    def test_parameters_without_gradients_stay(self) -> None:
        params = parameters((9, 9), (4,))
        before = [p.detach().clone() for p in params]
        Muon(params, weight_decay=0.1).step()
        assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))

    def test_the_smaller_side_decides(self) -> None:
        params = parameters((9, 40), (9, 8), (9, 7), (9,), (9, 9, 9))
        groups = {group["muon"]: group["params"] for group in Muon(params, min_side=8).param_groups}
        assert [tuple(p.shape) for p in groups[True]] == [(9, 40), (9, 8)]
        assert [tuple(p.shape) for p in groups[False]] == [(9, 7), (9,), (9, 9, 9)]

    def test_schedules_scale_both_rates(self) -> None:
        optimizer = Muon(parameters((9, 9), (4,)), lr=0.1, muon_lr=0.3)
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.5)
        assert [group["lr"] for group in optimizer.param_groups] == [0.15, 0.05]

    def test_the_closure_is_called_with_gradients(self) -> None:
        (weight,) = params = parameters((9, 9))
        optimizer = Muon(params)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = weight.square().sum()
            loss.backward()
            return loss

        losses = [optimizer.step(closure).item() for _ in range(3)]
        assert losses[2] < losses[1] < losses[0]
        assert Muon(parameters((3,))).step() is None


def test_a_loaded_state_continues_bitwise() -> None:
    params = [nn.Parameter(torch.randn(shape)) for shape in ((20, 8), (8, 20), (6,), (2, 3, 4))]
    first, second = gradients(params, 3), gradients(params, 3)
    optimizer = Muon(params)
    run(optimizer, params, first)
    other = twins(params)
    restored = Muon(other, lr=1.0, muon_lr=1.0)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, same in zip(run(optimizer, params, second), run(restored, other, second), strict=True):
        assert torch.equal(one, same)


class TestErrors:
    @pytest.mark.parametrize("rates", [{"lr": 0.0}, {"muon_lr": -1.0}], ids=str)
    def test_rates_must_be_positive(self, rates: dict[str, float]) -> None:
        with pytest.raises(ValueError, match="learning rates must be positive"):
            Muon(parameters((9, 9)), **rates)

    def test_groups_are_refused(self) -> None:
        with pytest.raises(ValueError, match="not parameter groups"):
            Muon([{"params": parameters((9, 9))}])

    def test_no_parameters(self) -> None:
        with pytest.raises(ValueError, match="empty parameter list"):
            Muon([])
