"""The LightningModule: loss, sampling, checkpoints, calibration."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from conftest import describe
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

import wsflow
from wsflow.alignment import WeightMatching
from wsflow.description import DescriptionError, plain
from wsflow.fields import Endpoint, GaussianField, MLPField, Parametrization, SelfConditioned
from wsflow.fields.relational_transformer import RelationalTransformer
from wsflow.flow import (
    AlignedOptimalTransportCoupling,
    ConstantNoisePath,
    DormandPrince,
    Euler,
    ExactTrace,
    GaussianPrior,
    GeodesicPath,
    Heun,
    Likelihood,
    NetworkPrior,
    OptimalTransportCoupling,
    Sampler,
    StartsPrior,
    TrajectoryCoupling,
    UniformTime,
)
from wsflow.geometry import Euclidean, Geometric, Normalized
from wsflow.likelihood import Densities
from wsflow.losses import PerTensor
from wsflow.module import FlowMatchingModule
from wsflow.schedule import Constant, WarmupCosine
from wsflow.weightspace import WeightSpace, ZooBatch, batch_statistics
from wsflow.weightspace.randomness import RowGenerator

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec.*",  # lightning 2.6 calls torch's pytree by names that torch 2.15 deprecates
    "ignore:.*does not have many workers",
    "ignore:.*smaller than the logging interval",
    "ignore:The dirpath has changed",
)

SPACE = describe([5, 4, 3, 2])
FIELD = partial(MLPField, width=8, depth=1)


def networks(n: int = 24, seed: int = 0) -> ZooBatch:
    space = WeightSpace.from_description(SPACE)
    generator = torch.Generator().manual_seed(seed)
    start = 0.5 * torch.randn(n, space.dim, generator=generator)
    return ZooBatch(start + 1, start, torch.arange(n))


class Networks(LightningDataModule):
    """24 networks that are their starts plus one, in batches of 8."""

    def __init__(self, n: int = 24) -> None:
        super().__init__()
        self.n = n
        self.batch = networks(n)

    def networks(self, split: str) -> ZooBatch:
        return self.batch

    def calibration(self, n: int) -> ZooBatch:
        self.asked = n
        return self.batch

    def train_dataloader(self) -> DataLoader:
        x1, start, run, *_ = self.batch
        return DataLoader(range(self.n), batch_size=8, collate_fn=lambda i: ZooBatch(x1[i], start[i], run[i]))

    val_dataloader = train_dataloader


def trainer(folder, epochs: int = 1) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, filename="flow", enable_version_counter=False)],
    )


MODULES = {
    "defaults": {},
    "trajectory": {"coupling": TrajectoryCoupling(), "prior": GaussianPrior(0.5), "time": UniformTime()},
    "normalized-ot": {"geometry": Normalized, "coupling": OptimalTransportCoupling(), "path": ConstantNoisePath(0.01)},
    "geometric-aligned-endpoint": {
        "geometry": partial(Geometric, keep_scale=False),
        "coupling": AlignedOptimalTransportCoupling(WeightMatching(iterations=3)),
        "parametrization": Endpoint(),
    },
    "scheduler": {"scheduler": partial(WarmupCosine, warmup=0.5), "optimizer": partial(torch.optim.SGD, lr=0.1)},
    "constant": {"scheduler": Constant},
    "weighted-self-conditioned": {
        "weighting": PerTensor(0.5),
        "field": partial(SelfConditioned, field=FIELD, probability=0.7),
    },
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_made_in_python_is_rebuilt_from_its_checkpoint(name, tmp_path):
    arguments = {"field": FIELD, **MODULES[name]}
    module = FlowMatchingModule(SPACE, **arguments)
    trainer(tmp_path).fit(module, datamodule=Networks())
    loaded = FlowMatchingModule.load_from_checkpoint(tmp_path / "flow.ckpt", weights_only=True)
    for part in ("geometry", "prior", "coupling", "time", "path", "parametrization"):
        assert type(getattr(loaded, part)) is type(getattr(module, part))
    assert getattr(loaded.geometry, "dim", None) == module.geometry.dim
    assert plain(loaded.coupling) == plain(module.coupling)
    assert plain(loaded.prior) == plain(module.prior)
    sampler = Sampler(steps=3)
    assert torch.equal(loaded.sample(range(5), 1, sampler), module.sample(range(5), 1, sampler))
    # What was loaded can be saved and loaded again.
    trainer(tmp_path / "again").fit(loaded, datamodule=Networks())
    again = wsflow.load(tmp_path / "again" / "flow.ckpt")
    assert torch.equal(again.sample(2, sampler=sampler), loaded.sample(range(2), sampler=sampler))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_flow_of_convolutional_networks_on_spheres(batch_norm):
    sizes = {"channels": [3, 4], "kernels": [3, 3], "strides": [2, 2], "paddings": [0, 1]}
    network = {**sizes, "input_shape": [1, 12, 12], "classes": 3, "batch_norm": batch_norm}
    space = {"class_path": "wsflow.weightspace.cnn", "init_args": network, "input_shape": [1, 12, 12]}
    module = FlowMatchingModule(space, geometry=Geometric, field=FIELD)
    theta = module.sample(range(3), 1, Sampler(steps=2))
    assert theta.shape == (3, module.space.dim)
    assert module.geometry.dim == module.space.dim + 1
    images = torch.randn(4, 1, 12, 12)
    assert module.space.forward(batch_statistics(module.space, theta, images), images).isfinite().all()


class Sealed(Parametrization):
    """A parametrization that does not keep its argument."""

    singular_end = False

    def __init__(self, factor: float) -> None:
        self.hidden = factor

    def velocity(self, output, geometry, x, t):
        return output

    def residual(self, output, geometry, sample):
        return output - sample.u_t

    def target(self, geometry, sample):
        return sample.u_t


def test_a_module_without_description_says_so_when_it_is_loaded(tmp_path):
    module = FlowMatchingModule(SPACE, field=FIELD, parametrization=Sealed(1.0))
    trainer(tmp_path).fit(module, datamodule=Networks())
    with pytest.raises(ValueError, match="Sealed must keep its init argument 'factor'"):
        wsflow.load(tmp_path / "flow.ckpt")
    with pytest.raises(ValueError, match="give load_from_checkpoint the arguments again"):
        FlowMatchingModule.load_from_checkpoint(tmp_path / "flow.ckpt")
    arguments = {"field": FIELD, "parametrization": Sealed(1.0)}
    loaded = FlowMatchingModule.load_from_checkpoint(tmp_path / "flow.ckpt", **arguments)
    assert torch.equal(loaded.sample(range(3)), module.sample(range(3)))


@pytest.mark.parametrize("thing", [lambda: 0, partial(print, 1), torch.zeros(2)], ids=["lambda", "partial", "tensor"])
def test_what_has_no_description_is_refused(thing):
    with pytest.raises(DescriptionError):
        plain(thing)


def test_descriptions():
    assert plain(Sampler(Heun(), 3)) == {
        "class_path": "wsflow.flow.sampler.Sampler",
        "init_args": {
            "solver": {"class_path": "wsflow.flow.solver.Heun", "init_args": {}},
            "steps": 3,
            "noise": 0.0,
            "power": 1.0,
            "guidance": None,
            "grid": None,
        },
    }
    assert plain([Euler, (1, None)]) == [{"class_path": "wsflow.flow.solver.Euler"}, [1, None]]
    assert plain({1: describe}) == {"1": f"{describe.__module__}.describe"}


def test_training_learns_a_constant_displacement(tmp_path):
    torch.manual_seed(0)
    adam = partial(torch.optim.Adam, lr=1e-2)
    module = FlowMatchingModule(
        SPACE, field=FIELD, coupling=TrajectoryCoupling(), prior=GaussianPrior(0.5), optimizer=adam
    )
    trainer(tmp_path, epochs=15).fit(module, datamodule=Networks(160))
    theta = module.sample(range(500))
    assert abs(float(theta.mean()) - 1) < 0.02
    assert abs(float(theta.std()) - 0.5) < 0.02


def test_the_loss_is_the_squared_residual_per_coordinate():
    module = FlowMatchingModule(SPACE, field=FIELD, coupling=TrajectoryCoupling())
    # The field is zero before training, the velocity 1 in every coordinate.
    torch.testing.assert_close(module.loss(networks(6), torch.Generator()), torch.ones(6))


PRIORS = {"gaussian": GaussianPrior(), "network": NetworkPrior(), "starts": StartsPrior(networks(seed=5).start)}


@pytest.mark.parametrize("prior", PRIORS)
def test_draws_depend_on_seed_epoch_and_place_alone(prior):
    def draws(seed: int = 0, epoch: int = 1, places: range = range(24), batch: int = 2) -> Tensor:
        module = FlowMatchingModule(SPACE, field=FIELD, seed=seed, path=GeodesicPath(0.1), prior=PRIORS[prior])
        torch.rand(3)
        part = networks().rows(slice(places[0] % 24, places[-1] % 24 + 1))
        return module.draw(part, RowGenerator.make(seed, places, (0, epoch), (batch,))).x_t

    whole = draws()
    assert torch.equal(whole, draws())
    # A process with a part of the batch draws what one with all of it draws.
    torch.testing.assert_close(draws(places=range(5, 17), batch=7), whole[5:17], rtol=0, atol=1e-6)
    different = [whole, draws(seed=1), draws(epoch=2), draws(places=range(24, 48))]
    assert len({float(x.sum()) for x in different}) == len(different)


def test_validation_gives_the_same_loss_every_time(tmp_path):
    module, run = FlowMatchingModule(SPACE, field=FIELD), trainer(tmp_path)
    first, second = (run.validate(module, datamodule=Networks(), verbose=False)[0]["val/flow_loss"] for _ in range(2))
    assert first == second
    assert first == run.validate(module, datamodule=Networks(), verbose=False)[0]["val/flow_loss"]


@pytest.mark.parametrize("geometry", [Euclidean, Normalized, Geometric], ids=lambda g: g.__name__)
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_sample_depends_on_seed_and_index_alone(geometry, noise):
    torch.manual_seed(0)
    module = FlowMatchingModule(SPACE, geometry, partial(RelationalTransformer, width=8, depth=1))
    for parameter in module.field.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    sampler = Sampler(steps=3, noise=noise)
    whole = module.sample(range(7), 3, sampler)
    assert whole.shape == (7, module.space.dim)
    parts = module.sample([6, 2, 4], 3, sampler, batch_size=2)
    torch.testing.assert_close(parts, whole[[6, 2, 4]], rtol=1e-5, atol=1e-5)
    assert (module.sample(range(7), 4, sampler) - whole).abs().max() > 1e-2
    assert module.training  # as it was


def test_evaluations_are_those_of_the_batch_that_needed_most():
    """Of one network whose steps are many and others whose steps are few, in any order."""
    torch.manual_seed(0)
    module = FlowMatchingModule(SPACE, field=FIELD)
    for parameter in module.field.parameters():
        torch.nn.init.normal_(parameter, std=2.0)
    sampler, each = Sampler(DormandPrince(1e-5, 1e-5)), []
    for i in range(6):
        module.sample([i], 0, sampler)
        each.append(sampler.evaluations)
    assert min(each) < max(each)
    for order in (range(6), range(5, -1, -1)):
        module.sample(order, 0, sampler, batch_size=1)
        assert sampler.evaluations == max(each)


def test_no_samples_are_an_empty_matrix():
    module = FlowMatchingModule(SPACE, field=FIELD)
    assert module.sample([]).shape == (0, module.space.dim)


def test_a_diverging_field_is_named():
    module = FlowMatchingModule(SPACE, field=FIELD)
    torch.nn.init.constant_(module.field.write.bias, torch.inf)
    with pytest.raises(ValueError, match=r"sample 4 \(seed 2\) has weights that are not finite"):
        module.sample([4, 5], 2)


def test_calibration_sets_the_scales_once(tmp_path):
    module = FlowMatchingModule(SPACE, field=FIELD, coupling=TrajectoryCoupling(), prior=GaussianPrior(0.5))
    data = Networks()
    assert not module.calibrated
    trainer(tmp_path / "first").fit(module, datamodule=data)
    assert module.calibrated
    torch.testing.assert_close(module.field.output_scale, torch.ones_like(module.field.output_scale))
    scales = module.field.input_scale.clone()
    assert (scales - 1).abs().min() > 0.01
    data.batch = networks(seed=1)
    trainer(tmp_path / "second").fit(module, datamodule=data)
    assert torch.equal(module.field.input_scale, scales)


@pytest.mark.parametrize(("networks_worth", "asked"), [(1000, 512), (100, 100), (3, 64)])
def test_calibration_takes_fewer_of_large_networks(networks_worth, asked, tmp_path, monkeypatch):
    monkeypatch.setattr("wsflow.module.CALIBRATION_NUMBERS", networks_worth * WeightSpace.from_description(SPACE).dim)
    module = FlowMatchingModule(SPACE, field=FIELD, coupling=TrajectoryCoupling(), prior=GaussianPrior(0.5))
    data = Networks()
    trainer(tmp_path).fit(module, datamodule=data)
    assert data.asked == asked


def test_a_prior_that_is_not_the_law_of_the_starts_is_warned_of():
    module = FlowMatchingModule(SPACE, field=FIELD, coupling=TrajectoryCoupling(), prior=GaussianPrior(0.1))
    with pytest.warns(UserWarning, match="training starts where sampling does not"):
        module.calibrate(networks(200))
    fitting = FlowMatchingModule(SPACE, field=FIELD, coupling=TrajectoryCoupling(), prior=GaussianPrior(0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitting.calibrate(networks(200))


def test_a_prior_of_starts_takes_those_of_training_runs(tmp_path):
    module, data = FlowMatchingModule(SPACE, field=FIELD, prior=StartsPrior()), Networks()
    trainer(tmp_path).fit(module, datamodule=data)
    assert torch.equal(module.prior.starts, data.batch.start)
    flow = wsflow.load(tmp_path / "flow.ckpt")
    assert len(flow.seen_starts) == 24
    with pytest.raises(ValueError, match="no starts"):
        flow.sample(2)
    assert flow.sample(2, prior=StartsPrior(networks(seed=3).start)).shape == (2, flow.weight_space.dim)


def test_another_weight_space_is_refused(tmp_path):
    trainer(tmp_path).fit(FlowMatchingModule(SPACE, field=FIELD), datamodule=Networks())
    other = FlowMatchingModule(describe([5, 4, 4, 2]), field=FIELD)
    with pytest.raises(ValueError, match=r"mlp\(widths=\[5, 4, 3, 2\]\).*mlp\(widths=\[5, 4, 4, 2\]\)"):
        trainer(tmp_path).validate(other, datamodule=Networks(), ckpt_path=tmp_path / "flow.ckpt")


def test_resuming_with_other_settings_is_warned_of(tmp_path):
    trainer(tmp_path / "first").fit(FlowMatchingModule(SPACE, field=FIELD), datamodule=Networks())
    other, path = FlowMatchingModule(SPACE, field=FIELD, time=UniformTime(), seed=3), tmp_path / "first" / "flow.ckpt"
    with pytest.warns(UserWarning, match="other settings than the checkpoint's: seed, time"):
        trainer(tmp_path / "second", epochs=2).fit(other, datamodule=Networks(), ckpt_path=path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"validation_draws": 0}, "validation_draws"), ({"space": {"class_path": "nowhere.net"}}, "nowhere.net")],
    ids=["draws", "space"],
)
def test_wrong_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        FlowMatchingModule(**{"space": SPACE, "field": FIELD, **arguments})


def test_flow_api(tmp_path):
    trainer(tmp_path).fit(FlowMatchingModule(SPACE, field=FIELD), datamodule=Networks())
    flow = wsflow.load(tmp_path / "flow.ckpt")
    theta = flow.sample(4, seed=1)
    torch.testing.assert_close(flow.sample(2, seed=1, first=2), theta[2:])
    network = flow.weight_space.to_module(theta[0])
    inputs = torch.randn(6, 5)
    torch.testing.assert_close(network(inputs), flow.weight_space.forward(theta[:1], inputs)[0])
    with pytest.raises(ValueError, match="n must not be negative"):
        flow.sample(-1)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        wsflow.load(tmp_path / "absent.ckpt")


@pytest.mark.parametrize(("warmup", "final"), [(0.0, 0.0), (0.1, 0.2)])
def test_the_cosine_schedule(warmup, final):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule, rates = WarmupCosine(optimizer, 100, warmup, final), []
    for _ in range(101):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    rise = round(100 * warmup)
    assert rates[:rise] == pytest.approx([2.0 * (k + 1) / rise for k in range(rise)])
    assert rates[rise] == pytest.approx(2.0)
    assert rates[(100 + rise) // 2] == pytest.approx(2.0 * (1 + final) / 2)
    assert rates[100] == pytest.approx(2.0 * final)


@pytest.mark.parametrize("arguments", [{"warmup": 1.0}, {"final": 2.0}], ids=str)
def test_a_schedule_out_of_range(arguments):
    with pytest.raises(ValueError, match="warmup must lie in"):
        WarmupCosine(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]), 10, **arguments)


@pytest.mark.parametrize("sigma", [0.0, 0.4])
def test_samples_start_where_the_path_does(sigma):
    """With the exact field, samples and densities are those of the trained networks for any noise of the path."""
    wide, law = (0.3**2 + sigma**2) ** 0.5, torch.distributions.Normal(0.2, 0.5)
    field = partial(GaussianField, std0=wide, mean1=0.2, std1=0.5)
    flow = FlowMatchingModule(SPACE, field=field, prior=GaussianPrior(0.3), path=GeodesicPath(sigma))
    theta = flow.sample(range(400), sampler=Sampler(Heun(), 40))
    assert theta.std().item() == pytest.approx(0.5, rel=0.03)
    exact = law.log_prob(theta[:5]).sum(1)
    found = Densities(flow.generation(), Likelihood(ExactTrace())).of(theta[:5])
    torch.testing.assert_close(found.value, exact, rtol=1e-3, atol=1e-2)
