"""What all methods share, and the pieces of single ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from planted_task import Small

from wsflow.posteriors import (
    HMC,
    SGHMC,
    SGLD,
    SWAG,
    DeepEnsemble,
    Draws,
    FullLaplace,
    KroneckerLaplace,
    LastLayerLaplace,
    MeanFieldVI,
    MissingExtraError,
    PosteriorMethod,
    Recipe,
    Schedule,
    StaticFlow,
    ZooEnsemble,
)
from wsflow.posteriors.hmc import split_r_hat
from wsflow.posteriors.laplace import linear
from wsflow.posteriors.static_flow import principal
from wsflow.posteriors.swag import draw
from wsflow.tasks import ClassificationTask
from wsflow.zoo import SGD, Adam, Collector, ZooDataModule

RECIPE = Recipe(epochs=3, batch_size=20, optimizer=Adam(0.05))
BRIEF = Schedule(chains=3, burn_in=2, interval=2, batch_size=20)


@pytest.fixture(scope="module")
def task() -> Small:
    return Small()


class Normed(ClassificationTask):
    """A convolutional classifier with batch norm, of images whose moments are far from 0 and 1."""

    @property
    def network(self):
        sizes = {"channels": [2], "kernels": [2], "strides": [2], "paddings": [0], "input_shape": [1, 4, 4]}
        return {
            "class_path": "wsflow.weightspace.cnn",
            "init_args": {**sizes, "classes": 2, "batch_norm": True, "pool": True},
            "output_activation": "softmax",
            "input_shape": [1, 4, 4],
        }

    def load(self):
        inputs = 4 + 3 * torch.randn(60, 1, 4, 4, generator=torch.Generator().manual_seed(1))
        return dict.fromkeys(("train", "val", "test"), (inputs, (inputs.mean((1, 2, 3)) > 4).long()))


@pytest.fixture(scope="module")
def zoo(task: Small, tmp_path_factory: pytest.TempPathFactory) -> ZooDataModule:
    path = tmp_path_factory.mktemp("zoo") / "small"
    Collector(runs=100, epochs=2, batch_size=20, shard_runs=100).collect(task, path, progress=False)
    return ZooDataModule(task, str(path))


def methods(zoo: ZooDataModule) -> list[PosteriorMethod]:
    return [
        DeepEnsemble(RECIPE),
        ZooEnsemble(zoo),
        SWAG(RECIPE, epochs=5, interval=2, rank=3, chains=2),
        SGLD(RECIPE, BRIEF),
        SGHMC(RECIPE, BRIEF),
        MeanFieldVI(RECIPE, epochs=2, batch_size=20, samples=2),
        LastLayerLaplace(RECIPE),
        KroneckerLaplace(RECIPE),
        FullLaplace(RECIPE, prior_precision=2.0),
        HMC(RECIPE, chains=3, warmup=3, iterations=4, leapfrog=2),
        StaticFlow(zoo, components=4, epochs=3),
    ]


@pytest.mark.parametrize("place", range(11))
def test_a_seed_names_the_networks(task: Small, zoo: ZooDataModule, place: int) -> None:
    method = methods(zoo)[place]
    state = torch.random.get_rng_state()
    first, again, other = (method.fit(task, 4, seed).theta for seed in (1, 1, 0))
    assert first is not None
    assert first.shape == (4, task.space.dim)
    assert first.isfinite().all()
    assert len(torch.unique(first, dim=0)) == 4
    torch.testing.assert_close(again, first, atol=0, rtol=0)
    assert other is not None
    assert not torch.equal(other, first)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_costs_are_counted_in_epochs(task: Small, zoo: ZooDataModule) -> None:
    costs = {method.name: method.fit(task, 4, 0).gradient_evaluations for method in methods(zoo)}
    assert costs["DeepEnsemble"] == 4 * 3
    assert costs["ZooEnsemble"] == 4 * 2
    assert costs["SWAG"] == 2 * (3 + 5)
    assert costs["SGLD"] == costs["SGHMC"] == 3 * (3 + 6 * 20 / 40)
    assert costs["MeanFieldVI"] == 3 + 2 * 2
    assert costs["FullLaplace"] == 3 + 2
    assert costs["HMC"] == 3 * (3 + 1 + 7 * 2)
    assert costs["StaticFlow"] == 0


def test_a_mini_batch_costs_the_data_points_that_it_holds(task: Small) -> None:
    """Of 40: three batches make an epoch of 16, 16 and 8; one of 64 holds all."""
    for size, epochs in ((16, 2), (64, 6)):
        schedule = Schedule(chains=1, burn_in=0, interval=6, batch_size=size)
        assert SGLD(RECIPE, schedule).fit(task, 1, 0).gradient_evaluations == 3 + epochs


def test_an_ensemble_is_what_a_zoo_collects(task: Small, zoo: ZooDataModule) -> None:
    recipe = Recipe(epochs=2, batch_size=20, together=2)
    theta = DeepEnsemble(recipe).fit(task, 3, seed=0).theta
    torch.testing.assert_close(theta, zoo.zoo.theta[:3], atol=1e-5, rtol=1e-5)


def test_seeds_share_no_held_out_network(task: Small, zoo: ZooDataModule) -> None:
    parts = [ZooEnsemble(zoo).fit(task, 5, seed).theta for seed in (0, 1)]
    test = zoo.zoo.rows(zoo.rows("test"))
    torch.testing.assert_close(torch.cat(parts), test, atol=0, rtol=0)
    with pytest.raises(ValueError, match="10 runs; 5 networks of seed 2 need 15"):
        ZooEnsemble(zoo).fit(task, 5, 2)


def test_what_is_read_changes_with_the_zoo(task: Small, zoo: ZooDataModule, tmp_path: Path) -> None:
    """`wsflow baselines` measures rows again where a file that they were read from is another."""
    Collector(runs=2, epochs=1, batch_size=20, seed=1).collect(task, tmp_path / "other", progress=False)
    for method in (ZooEnsemble, StaticFlow):
        (file,), (changed,) = method(zoo).reads(0), method(ZooDataModule(task, str(tmp_path / "other"))).reads(0)
        assert file.parent == Path(zoo.path)
        assert file.read_bytes() != changed.read_bytes()
    assert DeepEnsemble(RECIPE).reads(0) == []


def test_swag_has_half_the_variances_and_half_the_low_rank_part() -> None:
    generator = torch.Generator().manual_seed(0)
    iterates = torch.randn(1, 12, 3, generator=generator) * torch.tensor([0.5, 1.0, 2.0])
    theta = draw(iterates, 40_000, rank=4, scale=0.5, generator=generator)
    running = torch.stack([iterates[0, : i + 1].mean(0) for i in range(12)])
    deviations = (iterates[0] - running)[-4:]
    wanted = 0.5 * (iterates[0].var(0, correction=0).diag() / 2 + deviations.T @ deviations / (2 * 3))
    torch.testing.assert_close(theta.mean(0), iterates[0].mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(theta.T.cov(), wanted, atol=0.03, rtol=0)


def test_the_last_layers_draws_leave_the_others(task: Small) -> None:
    theta = LastLayerLaplace(RECIPE).fit(task, 20, 0).theta
    assert theta is not None
    spread = task.space.unflatten(theta.std(0))
    last = task.space.tensors[-2:]
    assert all((spread[tensor.name] > 0.01).all() for tensor in last)
    assert all((spread[tensor.name] == 0).all() for tensor in task.space.tensors if tensor not in last)


def test_the_last_layers_matrix_is_of_the_network_as_it_predicts() -> None:
    """With the batch norm's statistics of train data, by the Gauss-Newton matrix of a softmax."""
    task, precision = Normed(), 0.1
    theta = LastLayerLaplace(RECIPE, precision).fit(task, 4000, 0).theta
    centre = RECIPE.train(task, 1, 0)
    assert theta is not None
    with torch.no_grad():
        network = task.space.to_module(task.with_statistics(centre)[0])
        features = network[:-1](task.data("train")[0])
    p = task.predictions(task.logits(centre, "train"))[0]
    features = torch.cat([features, torch.ones(len(features), 1)], 1)
    curved = torch.einsum("nab,ni,nj->aibj", torch.diag_embed(p) - p[:, :, None] * p[:, None], features, features)
    exact = torch.linalg.inv(curved.reshape(6, 6) + precision * torch.eye(6)).diagonal().view(2, 3)
    spread = task.space.unflatten(theta.var(0)[None])
    found = torch.cat([spread["head.weight"][0], spread["head.bias"][0, :, None]], 1)
    torch.testing.assert_close(found, exact, rtol=0.12, atol=0)


def test_r_hat_is_of_networks_with_their_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, task = [], Normed()
    monkeypatch.setattr("wsflow.posteriors.hmc.split_r_hat", lambda values: seen.append(values) or torch.ones(1))
    theta = HMC(RECIPE, chains=2, warmup=1, iterations=4, leapfrog=1).fit(task, 8, 0).theta
    assert theta is not None
    wanted = task.predictions(task.logits(theta, "val"))[:, :32].view(4, 2, 32, 2)
    torch.testing.assert_close(seen[0], wanted)


@pytest.mark.parametrize("make", [Small, Normed])
def test_a_linearised_network_is_the_tangent(make: type[ClassificationTask]) -> None:
    task = make()
    centre, step = torch.randn(task.space.dim), 1e-4 * torch.randn(2, task.space.dim)
    inputs = task.data("val")[0]
    kept = task.with_statistics(centre[None])[:, task.space.dim :]
    exact = task.space.forward(torch.cat([centre + step, kept.expand(2, -1)], 1), inputs).softmax(-1)
    start = task.space.forward(torch.cat([centre[None], kept], 1), inputs).softmax(-1)
    error = (linear(task, centre, centre + step)(inputs) - exact).abs().max()
    assert error < 0.03 * (exact - start).abs().max()


def test_r_hat_tells_chains_that_agree_from_others() -> None:
    values = torch.randn(200, 4, 3, generator=torch.Generator().manual_seed(0))
    assert (split_r_hat(values) < 1.02).all()
    assert (split_r_hat(values + torch.arange(4.0)[:, None]) > 1.5).all()
    assert split_r_hat(torch.ones(20, 4)) == 1


def test_principal_components_hold_what_lies_in_them() -> None:
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(3, 20, generator=generator)
    train, val = (torch.randn(n, 3, generator=generator) @ directions + 1 for n in (200, 50))
    found = principal(train, val, 3)
    assert found.residual.max() < 1e-5
    coordinates = found.coordinates(train)
    torch.testing.assert_close(coordinates.T.cov(), torch.eye(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.mean + coordinates @ found.scaled, train, atol=1e-4, rtol=0)
    assert principal(train, val, 2).residual.max() > 0.1


def test_a_static_flow_has_the_spread_of_the_networks(task: Small, zoo: ZooDataModule) -> None:
    draws = StaticFlow(zoo, components=12, epochs=60, lr=1e-2).fit(task, 400, 0)
    train = zoo.networks("train").x1
    assert draws.theta is not None
    ratio = (draws.theta.var(0).sum() / train.var(0).sum()).sqrt()
    assert 0.85 < ratio < 1.15
    assert (draws.theta.mean(0) - train.mean(0)).abs().max() < 0.15
    assert draws.notes["zoo.networks"] == len(train)
    assert draws.notes["zoo.gradient_evaluations"] == 2 * len(train)


def test_a_fit_that_diverged_is_refused(task: Small) -> None:
    for method in (
        SGLD(RECIPE, BRIEF, lr=1e20),
        SWAG(RECIPE, lr=1e20, epochs=3, interval=1, rank=2),
        DeepEnsemble(Recipe(epochs=30, batch_size=20, optimizer=SGD(1e20))),
    ):
        with pytest.raises(ValueError, match=r"\d of 4 networks have weights that are not finite: the fit diverged"):
            method.fit(task, 4, 0)


def test_a_part_that_diverged_is_counted() -> None:
    theta = torch.zeros(3, 2)
    theta[1, 0] = torch.nan
    with pytest.raises(ValueError, match="1 of 3 networks"):
        Draws(theta)


@pytest.mark.parametrize(
    ("package", "method"), [("zuko", StaticFlow), ("laplace", LastLayerLaplace), ("posteriors", SGLD)]
)
def test_a_missing_extra_is_named(
    task: Small, zoo: ZooDataModule, package: str, method: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    argument = zoo if method is StaticFlow else RECIPE
    with pytest.raises(MissingExtraError, match=rf"needs {package}.*pip install 'wsflow\[baselines\]'"):
        method(argument, **({"components": 4} if method is StaticFlow else {})).fit(task, 2, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda zoo: Recipe(epochs=0), "must be positive"),
        (lambda zoo: SWAG(RECIPE, rank=1), "rank must be at least 2"),
        (lambda zoo: Schedule(interval=0), "must be positive"),
        (lambda zoo: HMC(RECIPE, chains=1), "at least 2 chains"),
        (lambda zoo: MeanFieldVI(RECIPE, samples=0), "must be positive"),
        (lambda zoo: StaticFlow(zoo, residual=-1), "residual not negative"),
        (lambda zoo: Draws(None), "weights or outputs"),
        (lambda zoo: StaticFlow(zoo, components=17).fit(Small(), 2, 0), "take at most a fifth"),
        (lambda zoo: SWAG(RECIPE, epochs=1, interval=2).fit(Small(), 2, 0), "rank 20 needs as many iterates"),
        (lambda zoo: HMC(RECIPE, 2, 1, 4, 1).fit(Small(), 9, 0), "fewer than 9 networks"),
        (lambda zoo: KroneckerLaplace(RECIPE).fit(Normed(), 2, 0), "no kron approximation for this network"),
        (
            lambda zoo: StaticFlow(ZooDataModule(Small(), zoo.path, fractions=(0.9, 0, 0.1)), 4).fit(Small(), 2, 0),
            "has no runs to stop the training by",
        ),
    ],
)
def test_what_cannot_be_is_refused(zoo: ZooDataModule, make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(zoo)
