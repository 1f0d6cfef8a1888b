from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from saeuron.sae import SaeConfig, SparseAutoencoder, as_selection, geometric_median


def sae_of(d_in=4, latents=6, k=2, dtype=torch.float64, **kwargs):
    return SparseAutoencoder(SaeConfig(d_in, num_latents=latents, k=k, **kwargs), dtype=dtype)


def test_starts_as_the_paper_says():
    sae = SparseAutoencoder(SaeConfig(8))
    assert sae.config.latents == 128
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(128))
    cosine = torch.cosine_similarity(sae.W_dec, sae.encoder.weight)
    torch.testing.assert_close(cosine, torch.ones(128))
    assert not sae.encoder.bias.any()


def test_equations_by_eye():
    sae = sae_of(d_in=2, latents=3, k=1)
    with torch.no_grad():
        sae.encoder.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1]]))
        sae.encoder.bias.copy_(torch.tensor([0.0, 0.5, -2]))
        sae.W_dec.copy_(torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8]]))
        sae.b_dec.copy_(torch.tensor([1.0, 0]))
    x = torch.tensor([[3.0, 1], [1, -2]], dtype=torch.float64)
    # x - b_dec = (2, 1), (0, -2); pre_acts = (2, 1.5, 1), (0, 0, 0)
    assert sae.pre_acts(x).tolist() == [[2, 1.5, 1], [0, 0, 0]]
    code = sae.encode(x)
    assert code.dense(3).tolist() == [[2, 0, 0], [0, 0, 0]]
    assert sae.decode(code).tolist() == [[3, 0], [1, 0]]


def dense_loss(x, W_enc, b_enc, W_dec, b_dec, k, batch, dead):
    """METHOD section 2 written out with dense matrices."""
    pre = torch.relu((x - b_dec) @ W_enc.T + b_enc)
    flat = pre.flatten()
    bound = flat.sort(descending=True).values[k * len(x) - 1] if batch else pre.topk(k).values[:, -1:]
    x_hat = torch.where(pre >= bound, pre, 0) @ W_dec + b_dec
    variance = ((x - x.mean(0)) ** 2).sum()
    fvu = ((x - x_hat) ** 2).sum() / variance
    n, half = int(dead.sum()), x.shape[1] // 2
    if n == 0:
        return fvu, fvu * 0
    only_dead = pre * dead
    place = only_dead.topk(min(half, n)).indices
    z = torch.zeros_like(pre).scatter(1, place, only_dead.gather(1, place))
    auxk = min(n / half, 1) * ((z @ W_dec - (x - x_hat).detach()) ** 2).sum() / variance
    return fvu, auxk


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("n_dead", [0, 3, 12])
def test_loss_and_gradients_equal_the_dense_form(batch, n_dead):
    torch.manual_seed(0)
    sae = sae_of(d_in=10, latents=30, k=4, batch_topk=batch)
    with torch.no_grad():
        sae.b_dec.normal_()
        sae.encoder.bias.normal_()
    x = torch.randn(25, 10, dtype=torch.float64)
    dead = torch.zeros(30, dtype=torch.bool)
    dead[:n_dead] = True
    loss = sae.loss(x, dead.nonzero().squeeze(1))
    loss.total.backward()
    mine = [parameter.grad.clone() for parameter in sae.parameters()]
    sae.zero_grad()
    fvu, auxk = dense_loss(x, sae.encoder.weight, sae.encoder.bias, sae.W_dec, sae.b_dec, 4, batch, dead)
    (fvu + auxk / 32).backward()
    torch.testing.assert_close(loss.fvu, fvu)
    torch.testing.assert_close(loss.auxk, auxk)
    assert (loss.auxk > 0) == (n_dead > 0)
    for gradient, parameter in zip(mine, sae.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_auxk_by_eye():
    # one live latent along x, one dead latent along y; the residual is what points along y
    sae = sae_of(d_in=2, latents=2, k=1, batch_topk=False)
    with torch.no_grad():
        sae.encoder.weight.copy_(torch.tensor([[2.0, 0], [0, 1]]))
        sae.W_dec.copy_(torch.tensor([[1.0, 0], [0, 1]]))
        sae.b_dec.copy_(torch.tensor([7.0, 0]))
    x = torch.tensor([[8.0, 1], [9, 0]], dtype=torch.float64)
    # x - b_dec = (1, 1), (2, 0); live z = 2, 4; x_hat = (9, 0), (11, 0); residual = (-1, 1), (-2, 0)
    # dead z = 1, 0, e_hat = (0, 1), (0, 0), without b_dec; e_hat - residual = (1, 0), (2, 0): 5
    # variance of (8, 1), (9, 0) about (8.5, 0.5): 1; n_dead = 1 = d_in / 2: scale 1
    loss = sae.loss(x, torch.tensor([1]))
    assert loss.auxk.item() == 5
    assert loss.fvu.item() == 6


def test_auxk_reaches_only_dead_latents_and_not_the_residual():
    torch.manual_seed(0)
    sae = sae_of(d_in=6, latents=12, k=2)
    dead = torch.arange(12) < 4
    sae.loss(torch.randn(20, 6, dtype=torch.float64), torch.arange(4)).auxk.backward()
    assert not sae.encoder.weight.grad[~dead].any()
    assert not sae.W_dec.grad[~dead].any()
    assert sae.W_dec.grad[dead].any()


def test_encode_does_not_depend_on_the_config_or_the_batch():
    torch.manual_seed(0)
    x = torch.randn(9, 4, dtype=torch.float64)
    one, two = sae_of(batch_topk=True), sae_of(batch_topk=False)
    torch.testing.assert_close(one.encode(x).dense(6), two.encode(x).dense(6), rtol=0, atol=0)
    alone = torch.cat([one.encode(row[None]).dense(6) for row in x])
    torch.testing.assert_close(one.encode(x).dense(6), alone)


@pytest.mark.parametrize("selection", ["topk", "threshold"])
def test_activations_of_are_columns_of_the_code(selection):
    torch.manual_seed(0)
    sae = sae_of(d_in=8, latents=40, k=5)
    sae.threshold.fill_(0.4)
    x = torch.randn(3, 7, 8, dtype=torch.float64)
    features = torch.tensor([3, 0, 39])
    code = sae.encode(x.flatten(0, 1), selection).dense(40).reshape(3, 7, 40)
    torch.testing.assert_close(sae.activations_of(x, features, selection), code[..., features])


def test_threshold_is_refused_when_there_is_none():
    with pytest.raises(ValueError, match="learned a threshold"):
        sae_of().encode(torch.zeros(1, 4, dtype=torch.float64), "threshold")
    with pytest.raises(ValueError, match="'topk' or 'threshold'"):
        as_selection("best")


def test_decoder_normalisation_and_projection():
    sae = sae_of()
    with torch.no_grad():
        sae.W_dec *= torch.arange(1, 7)[:, None]
    sae.normalize_decoder()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(6, dtype=torch.float64))
    sae.W_dec.grad = torch.randn_like(sae.W_dec)
    sae.project_decoder_gradient()
    torch.testing.assert_close((sae.W_dec.grad * sae.W_dec).sum(1), torch.zeros(6, dtype=torch.float64))


def test_geometric_median():
    cross = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1], [0, 0]])
    torch.testing.assert_close(geometric_median(cross), torch.zeros(2))  # the first guess is a point
    torch.testing.assert_close(geometric_median(torch.ones(5, 3)), torch.ones(3))
    three = torch.tensor([[0.0, 0], [0, 0], [0, 0], [9, 0]])
    torch.testing.assert_close(geometric_median(three), torch.zeros(2), atol=1e-4, rtol=0)
    torch.manual_seed(0)
    points = torch.randn(200, 5, dtype=torch.float64) ** 3
    found = geometric_median(points)
    distance = (points - found).norm(dim=1).sum()
    for step in 1e-2 * torch.eye(5, dtype=torch.float64):
        assert distance <= (points - found - step).norm(dim=1).sum()
        assert distance <= (points - found + step).norm(dim=1).sum()


def test_threshold_stays_float32_whatever_the_weights_are():
    sae = sae_of(dtype=torch.float32)
    sae.threshold.fill_(0.1234567)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        sae.to(dtype)
        assert sae.W_dec.dtype == dtype
        assert sae.threshold.dtype == torch.float32
    assert sae.threshold == torch.tensor(0.1234567)


# ------------------------------------------------------------------------------------------------------------- files


def test_round_trip_in_the_released_layout(tmp_path):
    sae = sae_of(dtype=torch.float32)
    sae.threshold.fill_(0.3)
    sae.save_pretrained(tmp_path, "unet.up_blocks.1.attentions.1")
    folder = tmp_path / "unet.up_blocks.1.attentions.1"
    assert sorted(path.name for path in folder.iterdir()) == ["cfg.json", "sae.safetensors"]
    # the released loader is strict: these four tensors and no other
    assert set(load_file(folder / "sae.safetensors")) == {"encoder.weight", "encoder.bias", "W_dec", "b_dec"}
    assert json.loads((folder / "cfg.json").read_text())["d_in"] == 4
    for name, hookpoint in ((tmp_path, "unet.up_blocks.1.attentions.1"), (folder, None), (tmp_path, None)):
        again = SparseAutoencoder.from_pretrained(name, hookpoint)
        assert again.threshold == sae.threshold
        assert again.selection == "threshold"
        for a, b in zip(again.parameters(), sae.parameters(), strict=True):
            assert torch.equal(a, b)
        assert again.fingerprint() == sae.fingerprint()
    assert SparseAutoencoder.from_pretrained(folder, dtype=torch.float16).fingerprint() == sae.fingerprint()


def test_reads_a_checkpoint_as_released(tmp_path):
    # the released folders are named without the component, and know nothing of a threshold
    folder = tmp_path / "up_blocks.1.attentions.2"
    folder.mkdir()
    config = {
        "expansion_factor": 16, "normalize_decoder": True, "num_latents": 0, "k": 3, "batch_topk": True,
        "sample_topk": False, "input_unit_norm": False, "multi_topk": False, "d_in": 5,
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config))
    weights = {"encoder.weight": torch.randn(80, 5), "encoder.bias": torch.randn(80), "W_dec": torch.randn(80, 5)}
    save_file(weights | {"b_dec": torch.randn(5)}, folder / "sae.safetensors")
    sae = SparseAutoencoder.from_pretrained(tmp_path, "unet.up_blocks.1.attentions.2")
    assert (sae.config.latents, sae.config.k, sae.selection) == (80, 3, "topk")
    assert torch.equal(sae.encoder.weight, weights["encoder.weight"])
    assert torch.equal(sae.W_dec, weights["W_dec"])


@pytest.fixture
def saved(tmp_path):
    sae_of(dtype=torch.float32).save_pretrained(tmp_path)
    return tmp_path


def spoil_config(**changes):
    def spoil(folder):
        config = json.loads((folder / "cfg.json").read_text())
        (folder / "cfg.json").write_text(json.dumps(config | changes))

    return spoil


def drop_tensor(folder):
    weights = load_file(folder / "sae.safetensors")
    del weights["b_dec"]
    save_file(weights, folder / "sae.safetensors")


def put_nan(folder):
    weights = load_file(folder / "sae.safetensors")
    weights["b_dec"][0] = float("nan")
    save_file(weights, folder / "sae.safetensors")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda f: (f / "cfg.json").unlink(), "no SAE in"),
        (lambda f: (f / "cfg.json").write_text("{"), "is not json"),
        (lambda f: (f / "cfg.json").write_text("[]"), "expected a json object"),
        (spoil_config(d_in=5), "has shape"),
        (spoil_config(d_in="4"), "d_in is '4'"),
        (spoil_config(d_in=-4), "d_in is -4"),
        (spoil_config(k=7), "k is 7"),
        (spoil_config(threshold="high"), "threshold is 'high'"),
        (spoil_config(input_unit_norm=True), "input_unit_norm"),
        (lambda f: (f / "sae.safetensors").unlink(), "no file"),
        (lambda f: (f / "sae.safetensors").write_bytes(b"\x00" * 100), "damaged"),
        (lambda f: (f / "sae.safetensors").write_bytes((f / "sae.safetensors").read_bytes()[:-20]), "damaged"),
        (drop_tensor, "has no b_dec"),
        (put_nan, "not finite"),
    ],
)
def test_spoilt_files_are_named(saved, spoil, sentence):
    spoil(saved)
    with pytest.raises(ValueError, match=sentence):
        SparseAutoencoder.from_pretrained(saved)


def test_unknown_folders_and_hookpoints(saved, tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        SparseAutoencoder.from_pretrained(tmp_path / "nowhere")
    sae_of(dtype=torch.float32).save_pretrained(tmp_path / "two", "unet.a")
    sae_of(dtype=torch.float32).save_pretrained(tmp_path / "two", "unet.b")
    with pytest.raises(ValueError, match=r"name one of the hookpoints: unet\.a, unet\.b"):
        SparseAutoencoder.from_pretrained(tmp_path / "two")
    with pytest.raises(ValueError, match=r"no SAE for hookpoint 'unet\.c'"):
        SparseAutoencoder.from_pretrained(tmp_path / "two", "unet.c")
    sae_of(dtype=torch.float32).save_pretrained(tmp_path / "unet.up_blocks.1")
    assert SparseAutoencoder.from_pretrained(tmp_path / "unet.up_blocks.1", "unet.up_blocks.1")
    with pytest.raises(ValueError, match=r"no SAE for hookpoint 'unet\.c' .* it has: one for unet\.up_blocks\.1"):
        SparseAutoencoder.from_pretrained(tmp_path / "unet.up_blocks.1", "unet.c")


@pytest.mark.parametrize("changes", [{"d_in": 0}, {"k": 0}, {"num_latents": -1}, {"k": 100}])
def test_impossible_configs(changes):
    with pytest.raises(ValueError, match="expected"):
        SaeConfig(**({"d_in": 4, "num_latents": 8, "k": 2} | changes))
