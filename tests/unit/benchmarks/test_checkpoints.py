"""The benchmark of saving: small networks through the very path that training saves by."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import VitsConfig

from benchmarks import checkpoints
from benchmarks.checkpoints import SAVES, measure
from shared.runs import Run
from shared.store import Store


@pytest.mark.usefixtures("small_discriminator")
def test_every_save_is_told_and_is_in_the_store(
    small_config: VitsConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(checkpoints, "VitsConfig", lambda **_: small_config)
    measure(tmp_path)
    saves = re.findall(
        r"^save (\d): training waited .* published after .* GB$", capsys.readouterr().out, re.M
    )
    assert saves == [str(number + 1) for number in range(SAVES)]
    assert Run.acquire(Store.open(str(tmp_path / "store")), "benchmark").checkpoints()[-1] == SAVES
