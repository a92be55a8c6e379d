"""Every backend attends within documents and nowhere else. Those that need CUDA run with `pytest -m gpu`."""

import os
import subprocess
import sys
import types
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.contract.errors import UserError
from stages.trainer.model import attention, masks

CPU = ("sdpa", "eager")
HEADS, KV_HEADS, DIM, T = 4, 2, 16, 32
ENDS = [[0, 5, 32, 32, 32], [0, 1, 2, 20, 32], [0, 32, 32, 32, 32]]


def qkv(device="cpu", dtype=torch.float32, heads=HEADS, kv_heads=KV_HEADS, dim=DIM, length=T):
    draw = torch.Generator().manual_seed(0)
    make = lambda n: torch.randn(3, n, length, dim, generator=draw).to(device, dtype).requires_grad_()  # noqa: E731
    return make(heads), make(kv_heads), make(kv_heads)


def attend(backend, q, k, v, ends):
    most = int((ends.diff() > 0).sum()) if ends is not None else None
    where = attention.documents(ends, q[:, 0, :, 0], backend, most)
    out, _ = attention.attend(None, q, k, v, None, scaling=q.shape[-1] ** -0.5, documents=where)
    return out


def alone(q, k, v, ends):
    """Each document by itself: the definition."""
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    out = torch.zeros_like(q)
    for row, bounds in enumerate(ends.tolist()):
        for a, b in pairwise(bounds):
            if a < b:
                part = [x[row : row + 1, :, a:b] for x in (q, k, v)]
                out[row, :, a:b] = torch.nn.functional.scaled_dot_product_attention(*part, is_causal=True)[0]
    return out.transpose(1, 2)


def check(backend, device, dtype, tolerance, **sizes):
    q, k, v = qkv(device, dtype, **sizes)
    scale = q.shape[2] // T
    ends = torch.tensor(ENDS, dtype=torch.int32, device=device) * scale
    ours = attend(backend, q, k, v, ends)
    theirs = alone(q.float(), k.float(), v.float(), ends)
    torch.testing.assert_close(ours.float(), theirs, atol=tolerance, rtol=tolerance)
    weights = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1)).to(device)
    got = torch.autograd.grad((ours.float() * weights).sum(), (q, k, v))
    expected = torch.autograd.grad((theirs * weights).sum(), (q, k, v))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.float(), b.float(), atol=tolerance * 4, rtol=tolerance * 4)


@pytest.mark.parametrize("backend", CPU)
def test_forward_and_backward_are_those_of_each_document_alone(backend):
    check(backend, "cpu", torch.float32, 1e-5)


def test_flex_has_the_same_mask_where_it_has_only_a_forward_pass():
    ends = torch.tensor(ENDS, dtype=torch.int32)
    q, k, v = (x.detach() for x in qkv())
    torch.testing.assert_close(attend("flex", q, k, v, ends), alone(q, k, v, ends), atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", attention.BACKENDS)
def test_so_on_a_gpu(backend):
    if attention.unusable(backend):
        pytest.skip(f"{attention.BACKENDS[backend].package} is not installed")
    check(backend, "cuda", torch.bfloat16, 2e-2, heads=4, kv_heads=4, dim=64, length=256)


@pytest.fixture
def flash4_on_a_cpu(monkeypatch):
    """FlashAttention 4's two functions, by their definition: its own kernels need a GPU."""

    def forward(q, k, v, cu_seqlens_q, softmax_scale, **kwargs):
        out, lse = torch.empty_like(q), q.new_empty(q.shape[1], len(q))
        for a, b in pairwise(cu_seqlens_q.tolist()):
            scores = torch.einsum("ihd,jhd->hij", q[a:b], k[a:b]) * softmax_scale
            scores.masked_fill_(~torch.ones(b - a, b - a, dtype=torch.bool).tril(), float("-inf"))
            lse[:, a:b] = scores.logsumexp(-1)
            out[a:b] = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v[a:b])
        return out, lse, None

    def backward(q, k, v, out, grad, lse, cu_seqlens_q, softmax_scale, **kwargs):
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        for a, b in pairwise(cu_seqlens_q.tolist()):
            scores = torch.einsum("ihd,jhd->hij", q[a:b], k[a:b]) * softmax_scale
            p = (scores - lse[:, a:b, None]).exp().tril()
            dv[a:b] = torch.einsum("hij,ihd->jhd", p, grad[a:b])
            dp = torch.einsum("ihd,jhd->hij", grad[a:b], v[a:b])
            ds = p * (dp - (grad[a:b] * out[a:b]).sum(-1).t()[..., None]) * softmax_scale
            dq[a:b] = torch.einsum("hij,jhd->ihd", ds, k[a:b])
            dk[a:b] = torch.einsum("hij,ihd->jhd", ds, q[a:b])
        return dq, dk, dv

    interface = types.SimpleNamespace(_flash_attn_fwd=forward, _flash_attn_bwd=backward)
    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "flash_attn.cute.interface", interface)


@pytest.mark.usefixtures("flash4_on_a_cpu")
def test_flash4_compiles_once_for_any_number_of_documents():
    compiled = torch.compile(attention.attend, dynamic=False, fullgraph=True, backend="aot_eager")
    q, k, v = qkv(kv_heads=HEADS)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for ends in (ENDS, ENDS[:1] * 3, [[0, T, T, T]] * 3):
            ends = torch.tensor(ends, dtype=torch.int32)
            where = attention.documents(ends, q[:, 0, :, 0], "flash4", int((ends.diff() > 0).sum()))
            out = compiled(None, q, k, v, None, scaling=0.25, documents=where)[0]
            expected = alone(q, k, v, ends)
            torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
            for a, b in zip(*(torch.autograd.grad(x.square().sum(), (q, k, v)) for x in (out, expected)), strict=True):
                torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(attention.unusable("flash4") != "", reason="FlashAttention 4 is not installed")
def test_kernels_built_ahead_are_those_of_training(tmp_path):
    """In a process of its own, where the cache is empty: what training compiles adds nothing to it."""
    script = """
import os, sys
from stages.trainer.model import flash4
flash4.build()
kept = sorted(os.listdir(os.environ["FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"]))
import torch
for size in flash4.HEAD_DIMS:
    ends = torch.arange(0, 32 * 512 + 1, 512, dtype=torch.int32, device="cuda")
    q, k, v = (torch.randn(8, 2048, 4, size, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for _ in range(3))
    flash4.flash4(q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), ends, 1.0)[0].sum().backward()
assert kept and kept == sorted(os.listdir(os.environ["FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"]))
"""
    env = os.environ | {"FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], env=env, check=True)


def test_building_ahead_says_when_there_is_no_device(capsys, monkeypatch):
    from stages.trainer.model import flash4

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    flash4.build()
    assert "No CUDA device" in capsys.readouterr().out


@pytest.mark.parametrize("backend", (*CPU, "flex"))
def test_rows_of_one_document_need_no_boundaries(backend):
    q, k, v = (x.detach() for x in qkv())
    whole = torch.tensor([[0, T]] * 3, dtype=torch.int32)
    torch.testing.assert_close(attend(backend, q, k, v, None), alone(q, k, v, whole), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", CPU)
def test_nothing_leaks_from_another_document(backend):
    q, k, v = qkv()
    ends = torch.tensor(ENDS, dtype=torch.int32)
    before = attend(backend, q, k, v, ends)
    with torch.no_grad():
        k[0, :, :5] = 1e3  # the first document of the first row
        v[0, :, :5] = 1e3
    after = attend(backend, q, k, v, ends)
    torch.testing.assert_close(before[0, 5:], after[0, 5:], atol=0, rtol=0)
    torch.testing.assert_close(before[1:], after[1:], atol=0, rtol=0)
    assert (before[0, :5] - after[0, :5]).abs().max() > 1


def test_the_model_with_it_is_the_model_of_transformers(tiny, rows):
    """Logits through our attention, packed, equal transformers' own of each document alone."""
    from stages.trainer.loop.rows import PackedRows

    model = tiny().eval()
    reference = tiny().eval()
    attention.register()
    model.config._attn_implementation = attention.NAME
    item = PackedRows(rows)[0]
    ends = item["cu_seqlens"][None]
    where = attention.documents(ends, item["input_ids"][None], "sdpa")
    with torch.inference_mode():
        hidden = model.model(
            item["input_ids"][None], position_ids=item["position_ids"][None], use_cache=False, documents=where
        ).last_hidden_state[0]
        for a, b in pairwise(ends[0].tolist()):
            if a < b:
                expected = reference.model(item["input_ids"][None, a:b]).last_hidden_state[0]
                torch.testing.assert_close(hidden[a:b], expected, atol=2e-6, rtol=1e-4)


def test_a_mask_beside_it_is_refused(tiny):
    model = tiny()
    attention.register()
    model.config._attn_implementation = attention.NAME
    ids = torch.zeros(1, 4, dtype=torch.long)
    where = attention.documents(None, ids, "sdpa")
    with pytest.raises(ValueError, match="no attention_mask"):
        model.model(ids, attention_mask=torch.ones(1, 1, 4, 4, dtype=torch.bool), documents=where)
    with pytest.raises(ValueError, match="reads `documents`"):
        model.model(ids)


@pytest.mark.parametrize(
    ("device", "capability", "one", "expected"),
    [
        ("cpu", (0, 0), False, "sdpa"),
        ("cuda", (9, 0), True, "cudnn"),
        ("cuda", (8, 0), False, "flex"),
        ("cuda", (7, 0), False, "sdpa"),
    ],
)
def test_the_automatic_choice_follows_hardware_and_data(device, capability, one, expected):
    backend, reason = attention.choose("auto", device, capability, one)
    assert backend == expected or (capability >= (9, 0) and backend == "flash4")
    assert reason


@pytest.mark.parametrize(("one", "expected"), [(True, "sdpa"), (False, "flex")])
@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
def test_fp32_is_given_a_kernel_that_takes_it(capability, one, expected):
    assert attention.choose("auto", "cuda", capability, one, precision="fp32")[0] == expected
    assert attention.BACKENDS[expected].fp32


def test_what_cannot_run_is_named():
    with pytest.raises(
        UserError, match=r"cudnn has no kernel for trainer\.precision fp32\. Use auto, flex, sdpa, eager"
    ):
        attention.choose("cudnn", "cuda", (9, 0), True, precision="fp32")
    with pytest.raises(UserError, match=r"trainer\.attention: cudnn needs a CUDA device"):
        attention.choose("cudnn", "cpu", (0, 0), False)
    if attention.unusable("flash3"):
        with pytest.raises(UserError, match="needs the package flash_attn_interface"):
            attention.choose("flash3", "cuda", (9, 0), False)


def test_boundaries_ascend_and_documents_of_no_length_come_last():
    cu_seqlens = torch.tensor([[0, 2, 3, 4, 4], [0, 4, 4, 4, 4]], dtype=torch.int32)
    flat = masks.flat_boundaries(cu_seqlens, 2, 4, cu_seqlens.device)
    assert flat.tolist() == [0, 2, 3, 4, 8, 8, 8, 8, 8]
    assert masks.document_starts(flat, 2, 4).tolist() == [[0, 0, 2, 3], [0, 0, 0, 0]]
    assert masks.flat_boundaries(None, 2, 4, cu_seqlens.device).tolist() == [0, 4, 8]


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(1, 90), max_size=6), min_size=1, max_size=3), st.sampled_from([4, 16, 32]))
def test_the_block_mask_is_that_of_all_pairs(ends, size):
    row_tokens = 96
    most = max(map(len, ends))
    rows = [[0, *sorted(set(e)), *[row_tokens] * (most + 1 - len(set(e)))] for e in ends]
    cu_seqlens = torch.tensor(rows, dtype=torch.int32)
    ids = torch.zeros(len(ends), row_tokens, dtype=torch.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "FLEX_BLOCK", size)
        blocks = attention.documents(cu_seqlens, ids, "flex").mask
    pairs = attention.documents(cu_seqlens, ids, "sdpa").mask[:, 0]
    tiles = pairs.unflatten(2, (-1, size)).unflatten(1, (-1, size))  # [B, Q, size, K, size]
    some, whole = tiles.any(4).any(2), tiles.all(4).all(2)
    assert _chosen(blocks.kv_num_blocks, blocks.kv_indices).equal(some & ~whole)
    assert _chosen(blocks.full_kv_num_blocks, blocks.full_kv_indices).equal(whole)
    b, q, k = torch.meshgrid(*(torch.arange(n) for n in pairs.shape), indexing="ij")
    assert blocks.mask_mod(b, 0, q, k).equal(pairs)


def _chosen(count, index):
    """bool [B, Q, K] of a BlockMask's count [B, 1, Q] and index [B, 1, Q, K]."""
    listed = torch.arange(index.shape[-1]) < count[..., None]
    return torch.zeros(index.shape, dtype=torch.bool).scatter(-1, index.long(), listed)[:, 0]
