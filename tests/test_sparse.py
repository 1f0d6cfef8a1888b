from __future__ import annotations

import pytest
import torch

from saeuron.sparse import SparseCode, above, batch_topk, decode, decode_sparse, encode_sparse, topk

X = torch.tensor([[5.0, 1.0, 0.0], [2.0, 3.0, 4.0]])


def test_topk_keeps_the_largest_of_each_row():
    code = topk(X, 1)
    assert code.values.tolist() == [5, 4]
    assert code.latent.tolist() == [0, 2]
    assert code.offsets.tolist() == [0, 1, 2]


def test_topk_leaves_out_what_is_not_positive():
    code = topk(X, 3)
    assert code.offsets.tolist() == [0, 2, 5]
    assert code.dense(3).tolist() == X.tolist()


def test_batch_topk_keeps_the_largest_of_the_batch():
    # two rows, k = 2: the four largest of 5 1 0 / 2 3 4
    assert batch_topk(X, 2).dense(3).tolist() == [[5, 0, 0], [2, 3, 4]]
    assert batch_topk(X, 1).dense(3).tolist() == [[5, 0, 0], [0, 0, 4]]


def test_batch_topk_may_leave_rows_empty():
    code = batch_topk(torch.tensor([[0.0, 0.1, 0.2], [0.0, 0.0, 0.0], [9.0, 8.0, 7.0]]), 1)
    assert code.offsets.tolist() == [0, 0, 0, 3]
    assert decode(code, torch.eye(3)).tolist() == [[0, 0, 0], [0, 0, 0], [9, 8, 7]]


def test_batch_topk_keeps_exactly_as_many_with_ties():
    assert len(batch_topk(torch.ones(4, 5), 2).values) == 8


def test_batch_topk_of_more_than_there_are():
    assert batch_topk(X, 7).dense(3).tolist() == X.tolist()


def test_above_is_strict_and_positive():
    assert above(X, 3.0).dense(3).tolist() == [[5, 0, 0], [0, 0, 4]]
    assert above(X, -1.0).dense(3).tolist() == X.tolist()


@pytest.mark.parametrize("select", [topk, batch_topk])
def test_against_the_dense_form_in_float64(select):
    generator = torch.Generator().manual_seed(0)
    pre_acts = torch.randn(37, 50, generator=generator, dtype=torch.float64).relu()
    weight = torch.randn(50, 11, generator=generator, dtype=torch.float64)
    if select is topk:
        bound = pre_acts.sort(1, descending=True).values[:, 3:4]
    else:
        bound = pre_acts.flatten().sort(descending=True).values[4 * 37 - 1]
    dense = torch.where(pre_acts >= bound, pre_acts, 0)
    code = select(pre_acts, 4)
    torch.testing.assert_close(code.dense(50), dense, rtol=0, atol=0)
    torch.testing.assert_close(decode(code, weight), dense @ weight)


def test_gradients_of_decode_and_of_the_kept_values():
    generator = torch.Generator().manual_seed(0)
    code = batch_topk(torch.randn(6, 9, generator=generator, dtype=torch.float64).relu(), 2)
    values = code.values.clone().requires_grad_()
    weight = torch.randn(9, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, w: decode(SparseCode(v, code.latent, code.offsets), w), (values, weight))
    pre_acts = torch.randn(6, 9, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: batch_topk(p.relu(), 2).dense(9), (pre_acts,))


@pytest.mark.parametrize("bound", [-1.0, 0.5, 2.0, 3.9, 4.0, 100.0])
def test_a_bound_changes_nothing_in_batch_topk(bound):
    torch.manual_seed(0)
    x = torch.randn(50, 40, dtype=torch.float64).relu()
    for matrix, k in ((X, 2), (x, 3), (torch.ones(4, 5), 5)):
        assert torch.equal(
            batch_topk(matrix, k, bound).dense(matrix.shape[1]), batch_topk(matrix, k).dense(matrix.shape[1])
        )


@pytest.mark.parametrize("ties", [False, True])
def test_a_large_matrix_is_searched_above_a_sampled_bound(monkeypatch, ties):
    x = torch.randn(64, 100, generator=torch.Generator().manual_seed(0))
    if ties:
        x = x.round()
    exact = batch_topk(x, 5)
    monkeypatch.setattr("saeuron.sparse.SAMPLED_FROM", 1)
    for bound in (None, 1e9):
        found = batch_topk(x, 5, bound)
        assert torch.equal(found.values.sort().values, exact.values.sort().values)
    x[::2] = -1  # the sample sees every 64th entry
    assert len(batch_topk(-x.abs(), 5).values) == 0


def uneven(rows=60, d_in=16, latents=400):
    """Vectors of very different lengths: of some rows nothing is kept, of others hundreds; and some equal ones."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(rows, d_in, generator=generator, dtype=torch.float64)
    x[:2] *= 30
    x[10:20] *= 1e-6
    x[1] = x[0]
    weight, bias = torch.randn(latents, d_in, generator=generator, dtype=torch.float64), torch.zeros(latents).double()
    weight[7] = weight[8]
    return x, weight, bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bound", [None, 0.1, 1e9])
@pytest.mark.parametrize("n_dead", [0, 5, 300])
@pytest.mark.parametrize("batch", [True, False])
def test_the_sparse_forms_equal_the_dense_ones_in_float64(dtype, bound, n_dead, batch):
    x, weight, bias = uneven()
    decoder, target = torch.randn_like(weight), torch.randn_like(x)
    dead, k = torch.arange(400)[50 : 50 + n_dead], 7
    inputs = [value.to(dtype).requires_grad_() for value in (x, weight, bias, decoder)]
    limit = None if bound is None else torch.tensor(bound)
    code, aux = encode_sparse(inputs[0], inputs[1], inputs[2], k, batch=batch, bound=limit, dead=dead)
    lengths = code.offsets.diff()
    if batch:
        assert lengths.min() == 0
        assert lengths.max() > 150
    x_hat = decode_sparse(code, inputs[3])
    ((x_hat - target.to(dtype)).square().sum() + (aux @ inputs[3][dead]).square().sum()).backward()

    exact = [value.double().requires_grad_() for value in (x, weight, bias, decoder)]
    pre_acts = (exact[0] @ exact[1].T + exact[2]).relu()
    # ties and rounding decide which of nearly equal values is kept: the selection is taken over, and is a right one
    mask = torch.zeros_like(pre_acts, dtype=torch.bool)
    mask[code.rows(), code.latent] = True
    kept, left = pre_acts[mask], pre_acts[~mask]
    if batch:
        assert len(kept) == k * len(x)
        assert kept.min() >= left.max() * (1 - 1e-5)
    dense = torch.where(mask, pre_acts, 0) @ exact[3]
    ((dense - target).square().sum() + (pre_acts[:, dead] @ exact[3][dead]).square().sum()).backward()
    torch.testing.assert_close(x_hat.double(), dense, rtol=1e-5, atol=1e-5 * dense.abs().max().item())
    for mine, theirs in zip(inputs, exact, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        error = (mine.grad.double() - theirs.grad).norm() / theirs.grad.norm()
        assert error < (1e-5 if dtype == torch.float32 else 1e-12)


def test_gradients_of_the_sparse_forms():
    torch.manual_seed(0)
    x, weight, bias, decoder = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 4), (9, 4), (9,), (9, 4))
    )

    def whole(x, weight, bias, decoder):
        code, aux = encode_sparse(x, weight, bias, 2, dead=torch.tensor([1, 6]))
        return decode_sparse(code, decoder), aux

    assert torch.autograd.gradcheck(whole, (x, weight, bias, decoder))


def test_a_product_in_bfloat16_keeps_the_rest_in_float32():
    x, weight, bias = (value.float() for value in uneven())
    code, _ = encode_sparse(x, weight, bias, 7, dtype=torch.bfloat16)
    exact, _ = encode_sparse(x, weight, bias, 7)
    assert code.values.dtype == torch.float32
    both = set(zip(code.rows().tolist(), code.latent.tolist(), strict=True))
    assert len(both & set(zip(exact.rows().tolist(), exact.latent.tolist(), strict=True))) > 0.97 * len(both)
