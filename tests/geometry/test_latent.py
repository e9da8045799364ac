"""Latent spaces: principal components against a singular value decomposition, and a flow that lives there."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from wsflow.alignment import WeightMatching
from wsflow.fields import MLPField, NeuronTransformer, RelationalTransformer
from wsflow.flow import GaussianPrior, LatentNormal, Sampler, sample_prior
from wsflow.geometry import Euclidean, Geometric, PrincipalComponents
from wsflow.metrics import Evaluation
from wsflow.module import FlowMatchingModule
from wsflow.tasks import BreastCancer
from wsflow.weightspace import WeightSpace
from wsflow.zoo import Collector, ZooDataModule


@pytest.fixture
def zoo(space: WeightSpace, generator: torch.Generator) -> Tensor:
    """Sixteen correlated networks: more than some tensors have numbers, fewer than others."""
    mixing = torch.randn(space.dim, space.dim, generator=generator, dtype=torch.float64)
    return 1 + torch.randn(16, space.dim, generator=generator, dtype=torch.float64) @ mixing


@pytest.fixture
def latent(space: WeightSpace, zoo: Tensor) -> PrincipalComponents:
    geometry = PrincipalComponents(space, 3).double()
    geometry.fit(zoo)
    return geometry


def test_each_tensor_is_projected_to_its_first_singular_vectors(
    latent: PrincipalComponents, space: WeightSpace, zoo: Tensor
) -> None:
    decoded = latent.decode(latent.encode(zoo))
    for number, tensor in enumerate(space.tensors):
        part = zoo[:, tensor.slice]
        u, s, v = torch.linalg.svd(part - part.mean(0), full_matrices=False)
        k = min(3, tensor.numel)
        expected = part.mean(0) + u[:, :k] * s[:k] @ v[:k]
        torch.testing.assert_close(decoded[:, tensor.slice], expected)
        kept = s[:k].square().sum() / s.square().sum()
        torch.testing.assert_close(latent.kept[number], kept)
    assert 0.3 < latent.kept.min() < 0.99


def test_a_device_is_asked_once_whether_there_are_components(latent: PrincipalComponents, zoo: Tensor) -> None:
    latent.encode(zoo)
    latent.fitted = latent.fitted.to("meta")  # which has no value to read
    assert latent.decode(latent.encode(zoo)).shape == zoo.shape


def test_coordinates_are_standardised_and_uncorrelated_within_a_tensor(
    latent: PrincipalComponents, zoo: Tensor
) -> None:
    for z in latent.encode(zoo).split(latent.counts, dim=1):
        torch.testing.assert_close(z.mean(0), torch.zeros_like(z[0]), atol=1e-9, rtol=0)
        torch.testing.assert_close(z.mT.cov(), torch.eye(z.shape[1], dtype=torch.float64), atol=1e-9, rtol=0)


def test_decoding_then_encoding_is_the_identity(latent: PrincipalComponents, generator: torch.Generator) -> None:
    z = torch.randn(4, latent.dim, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(latent.encode(latent.decode(z)), z)
    assert latent.dim == sum(latent.counts) < latent.space.dim
    assert [name for name, _ in zip(latent.factors, latent.counts, strict=True)] == [
        t.name for t in latent.space.tensors
    ]


def test_directions_without_variance_are_left_out(space: WeightSpace, zoo: Tensor) -> None:
    flat = zoo[:1] + torch.linspace(0, 1, 16, dtype=torch.float64)[:, None] * zoo[1:2]  # a line
    geometry = PrincipalComponents(space, 3).double()
    geometry.fit(flat)
    torch.testing.assert_close(geometry.decode(geometry.encode(flat)), flat)
    z = torch.ones(1, geometry.dim, dtype=torch.float64)
    off = (geometry.decode(z) - geometry.mean)[0]
    assert off.abs().max() < 10 * flat.std(0).max()
    geometry.fit(zoo[:1].expand(16, -1))
    torch.testing.assert_close(geometry.kept, torch.ones_like(geometry.kept))
    torch.testing.assert_close(geometry.decode(z), zoo[:1])


def test_what_cannot_be_is_refused(space: WeightSpace, zoo: Tensor) -> None:
    with pytest.raises(ValueError, match="components must be at least 1"):
        PrincipalComponents(space, 0)
    with pytest.raises(ValueError, match="not known yet"):
        PrincipalComponents(space, 3).encode(zoo)
    with pytest.raises(ValueError, match="too few for 3 components"):
        PrincipalComponents(space, 3).fit(zoo[:4])
    with pytest.raises(ValueError, match=r"takes \(B, \d+\)"):
        PrincipalComponents(space, 3).fit(zoo[:, 1:])
    for field in (RelationalTransformer, NeuronTransformer):
        with pytest.raises(ValueError, match="use MLPField"):
            field(space, -10)


def test_a_standard_normal_prior_draws_coordinates(latent: PrincipalComponents, space: WeightSpace) -> None:
    x = sample_prior(LatentNormal(0.5), latent, 0, range(400))
    assert x.shape == (400, latent.dim)
    torch.testing.assert_close(x.std(), torch.tensor(0.5), rtol=0.05, atol=0)
    assert torch.equal(sample_prior(LatentNormal(0.5), latent, 0, [7]), x[7:8])
    expected = torch.distributions.Normal(0.0, 0.5).log_prob(x).sum(1)
    torch.testing.assert_close(LatentNormal(0.5).log_prob(x, latent), expected)
    far = GaussianPrior(30.0).sample(50, latent, torch.Generator().manual_seed(0))
    assert far.std() > 3
    assert LatentNormal().sample(2, Euclidean(space), torch.Generator().manual_seed(0)).shape == (2, space.dim)
    with pytest.raises(ValueError, match="not every vector is a point of Geometric"):
        LatentNormal().sample(2, Geometric(space), torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ZooDataModule:
    path = tmp_path_factory.mktemp("latent") / "zoo"
    task, collector = BreastCancer(), Collector(runs=60, epochs=4, batch_size=64)
    assert collector.collect(task, path, progress=False)
    return ZooDataModule(task, str(path), aligner=WeightMatching(), batch_size=16)


COMPONENTS = partial(PrincipalComponents, components=8)


def quiet_trainer(folder: Path, epochs: int) -> Trainer:
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )


def test_a_flow_trains_there_and_its_checkpoint_loads_without_data(data: ZooDataModule, tmp_path: Path) -> None:
    module = FlowMatchingModule(data.space_description, COMPONENTS, MLPField, LatentNormal())
    trainer = quiet_trainer(tmp_path, 2)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "flow.ckpt")
    assert module.field.dim == module.geometry.dim == 42
    assert module.calibrated
    samples = module.sample(range(8), 0, Sampler(steps=2))
    assert samples.shape == (8, data.task.space.dim)
    loaded = FlowMatchingModule.load_from_checkpoint(tmp_path / "flow.ckpt")
    assert loaded.geometry.fitted
    torch.testing.assert_close(loaded.sample(range(8), 0, Sampler(steps=2)), samples)


def test_evaluations_show_the_gaussian_null(data: ZooDataModule) -> None:
    train, heldout = data.networks("train").x1, data.networks("val").x1
    geometry = PrincipalComponents(data.task.space, 8)
    evaluation = Evaluation(data.task, train, heldout, geometry=geometry, baselines=[])
    assert geometry.fitted
    null = geometry.decode(torch.randn(6, geometry.dim, generator=torch.Generator().manual_seed(0)))
    report = evaluation(null)
    beside = evaluation.beside(report)
    assert report.values["baselines.latent_gaussian.noise"] == 0
    assert torch.equal(report.families["heldout"].theta, heldout)  # nothing is projected behind the reader's back
    torch.testing.assert_close(report.families[["baselines", "latent_gaussian"][1]].theta, null, atol=1e-3, rtol=0)
    assert beside["heldout.raw.loss"] == pytest.approx(report.values["heldout.loss"])
    projected = data.task.evaluate(geometry.decode(geometry.encode(heldout)), "val")["loss"].mean()
    assert beside["heldout.projected.loss"] == pytest.approx(float(projected), rel=1e-5)
    plain = Evaluation(data.task, train, heldout, geometry=Euclidean(data.task.space), baselines=[])(null)
    assert not [key for key in plain.values if key.startswith("baselines.")]


def test_unaligned_networks_are_warned_of(data: ZooDataModule, tmp_path: Path) -> None:
    unaligned = ZooDataModule(data.task, data.path, batch_size=16)
    assert data.aligned
    assert not unaligned.aligned
    module = FlowMatchingModule(data.space_description, COMPONENTS, MLPField, LatentNormal())
    trainer = quiet_trainer(tmp_path, 0)
    with pytest.warns(UserWarning, match="give the data module an aligner"):
        trainer.fit(module, unaligned)
