"""Adapters begin as nothing, are all that is trained, and end in a plain model's weights."""

import torch
from safetensors.torch import load_file

from stages.scaling.shapes import Shape
from stages.trainer.model import lora


def test_adapters_start_without_effect_and_merge(tiny, tmp_path):
    plain, model = tiny().eval(), tiny().eval()
    ids = torch.arange(20)[None]
    lora.inject(model, rank=4)
    torch.testing.assert_close(model(ids).logits, plain(ids).logits)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert len(trained) == 2 * len(lora.TARGETS) * model.config.num_hidden_layers
    held = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert held == lora.parameters(Shape.of(model.config.to_dict()), 4)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    expected = model(ids).logits
    assert (expected - plain(ids).logits).abs().max() > 1e-2
    lora.merge(model)
    assert model.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-4)
    model.save_pretrained(tmp_path)
    assert not [f for f in tmp_path.iterdir() if "adapter" in f.name]
    assert not [key for key in load_file(tmp_path / "model.safetensors") if "lora" in key]
    unchanged = dict(plain.named_parameters())
    for name, weight in model.named_parameters():
        assert torch.equal(weight, unchanged[name]) != any(target in name for target in lora.TARGETS)
