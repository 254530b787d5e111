"""How long training waits for a checkpoint: ``python -m benchmarks.checkpoints``.

Networks of MMS's size (36.3 and 46.7 million parameters) with the state of two AdamWs are saved four times, a
while apart, to a store in a local folder. Of each save are shown: the pause (how long training waits), the seconds
until everything is on the disk and in the store, and the bytes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import torch
from transformers import VitsConfig

from services.training.checkpoints import TrainerState
from services.training.config import resolve
from services.training.discriminator import Discriminator
from services.training.publishing import Publisher
from services.training.session import Plan, Session
from services.training.steps import Steps
from services.training.stopping import Stop
from services.training.tracking import Tracker
from shared.modeling import VitsForTraining
from shared.provenance import Provenance
from shared.runs import Run
from shared.store import Store

SAVES = 4


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder when left out")
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as folder:
        measure(Path(folder))


def measure(folder: Path) -> None:
    """Save a run of MMS's size below a folder."""
    generator = VitsForTraining(VitsConfig(vocab_size=40))
    generator.decoder.apply_weight_norm()
    networks = (generator, Discriminator())
    optimizers = [torch.optim.AdamW(network.parameters(), fused=True) for network in networks]
    for network, optimizer in zip(networks, optimizers, strict=True):
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
    millions = [sum(parameter.numel() for parameter in network.parameters()) / 1e6 for network in networks]
    print(f"generator {millions[0]:.1f} M, discriminator {millions[1]:.1f} M parameters, AdamW for both")

    config = resolve(
        {"model_name_or_path": "none", "dataset_name": "none", "output_dir": str(folder / "output")}
        | {"save_total_limit": 2},
        origin="the benchmark",
    )
    store = Store.open(str(folder / "store"))
    session = SimpleNamespace(
        config=config,
        accelerator=SimpleNamespace(is_main_process=True, scaler=None),
        base=SimpleNamespace(
            untrained=(), folder=folder, speakers={}, front_end=SimpleNamespace(save=lambda folder: None)
        ),
        generator=generator,
        discriminator=networks[1],
        plan=Plan(joint=1, per_epoch=1),
        provenance=Provenance(),
        store=store,
        ema=None,
        run=Run.acquire(store, "benchmark"),
        state=TrainerState(max_steps=SAVES + 1),
        step=0,
        comparable_from=lambda measure: 0,
    )
    steps = cast("Steps", SimpleNamespace(optimizers=optimizers))
    config.output_dir.mkdir()
    tracker = SimpleNamespace(
        say=lambda line: None, checkpoint_saved=lambda step, seconds: None, checkpoint_failed=lambda: None
    )
    with Publisher(cast("Session", session), cast("Tracker", tracker), Stop()) as publisher:
        for step in range(1, SAVES + 1):
            session.step = session.state.global_step = step
            begun = time.perf_counter()
            publisher.save(steps)
            paused = time.perf_counter() - begun
            publisher.close()
            done = time.perf_counter() - begun
            size = sum(file.stat().st_size for file in (config.output_dir / f"checkpoint-{step}").iterdir())
            print(
                f"save {step}: training waited {paused:.2f} s; saved and published after {done:.1f} s; "
                f"{size / 1e9:.2f} GB"
            )


if __name__ == "__main__":
    main()
