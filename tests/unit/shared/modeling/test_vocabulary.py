"""Changing the symbols that a model reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shared.modeling import VitsForTraining, load_model, save_model
from shared.modeling.vocabulary import resize_vocabulary

MakeModel = Callable[..., VitsForTraining]


def table(model: VitsForTraining) -> torch.Tensor:
    weight: torch.Tensor = model.text_encoder.embed_tokens.weight
    return weight


def test_kept_rows_move_to_the_bit_and_the_rest_is_drawn(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    old = table(model).clone()
    resize_vocabulary(model, 500, keep={0: 0, 7: 3, 499: 19}, seed=1)
    assert model.config.vocab_size == 500
    for row, kept in ((0, 0), (7, 3), (499, 19)):
        assert torch.equal(table(model)[row], old[kept])
    assert table(model)[8:499].std().item() == pytest.approx(8**-0.5, rel=0.1)
    name = "text_encoder.embed_tokens.weight"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items() if key != name)
    save_model(model, tmp_path)
    assert torch.equal(table(load_model(tmp_path)), table(model))


def test_fresh_rows_depend_on_the_seed_alone(make_model: MakeModel) -> None:
    def resized(seed: int) -> torch.Tensor:
        torch.rand(1)
        model = make_model()
        resize_vocabulary(model, 9, keep={}, seed=seed)
        return table(model)

    assert torch.equal(resized(1), resized(1))
    assert not torch.equal(resized(1), resized(2))


@pytest.mark.parametrize(("keep", "padding"), [({2: 4}, 2), ({2: 3}, None)])
def test_the_padding_symbol_follows_its_row(
    make_model: MakeModel, keep: dict[int, int], padding: int | None
) -> None:
    """It is the row that never learns."""
    model = make_model(pad_token_id=4)
    resize_vocabulary(model, 6, keep=keep)
    assert model.text_encoder.embed_tokens.padding_idx == padding
    assert model.config.pad_token_id == padding
