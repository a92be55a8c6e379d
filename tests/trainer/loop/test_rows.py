import torch

from stages.trainer.loop.rows import PackedRows


def test_no_document_sees_another(rows, tiny):
    """The logits of a packed row are those of each of its documents alone."""
    model = tiny().eval()
    dataset = PackedRows(rows)
    checked = 0
    for i in range(len(dataset)):
        item = dataset[i]
        with torch.inference_mode():
            packed = model(input_ids=item["input_ids"][None], position_ids=item["position_ids"][None]).logits[0]
            for a, b in zip(rows.cu_seqlens[i][:-1], rows.cu_seqlens[i][1:], strict=True):
                if a < b <= rows.filled[i]:  # not the padding
                    alone = model(input_ids=item["input_ids"][None, a:b]).logits[0]
                    torch.testing.assert_close(packed[a:b], alone, atol=2e-6, rtol=1e-4)
                    checked += a > 0
    assert checked > 3


def test_naive_concatenation_would_be_noticed(rows, tiny):
    model = tiny().eval()
    i = next(i for i in range(len(rows.tokens)) if 0 < rows.cu_seqlens[i][1] < rows.filled[i])
    item = PackedRows(rows)[i]
    with torch.inference_mode():
        masked = model(input_ids=item["input_ids"][None], position_ids=item["position_ids"][None]).logits
        naive = model(input_ids=item["input_ids"][None]).logits
    assert (masked - naive).abs().max() > 1e-3


def test_every_token_but_the_first_of_a_piece_is_a_label_once(rows):
    dataset = PackedRows(rows)
    labels = sum(int((dataset[i]["labels"] >= 0).sum()) for i in range(len(dataset)))
    pieces = sum(int((c[:-1] < f).sum()) for c, f in zip(rows.cu_seqlens, rows.filled, strict=True))
    assert labels == int(rows.filled.sum()) - pieces


def test_limit(rows):
    assert len(PackedRows(rows, limit=5)) == 5
    assert len(PackedRows(rows, limit=10**6)) == len(rows.tokens)
