from __future__ import annotations

import pytest
import torch

from saeuron.sparse import SparseCode, above, batch_topk, decode, topk

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
