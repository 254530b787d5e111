"""What a run tells: a progress bar on a terminal, plain lines elsewhere, and the logs that ``report_to`` names.

Curves carry the names that ``finetune-hf-vits`` gave them, so that runs of both lie in one chart. Everything
here gets plain numbers; nothing waits for the device.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch.utils.tensorboard import SummaryWriter

from services.training.artefacts import Artefacts
from services.training.config import SECRETS, TrainingConfig
from shared.errors import ConfigError, MissingExtraError
from shared.metrics import TrainingMetrics

if TYPE_CHECKING:
    from services.training.session import Session

#: Steps that are thrown away, and steps that are measured, before the first estimate of the time left.
_UNMEASURED_STEPS, _MEASURED_STEPS = 2, 5

#: Our names of losses, and those of ``finetune-hf-vits``, to which ``train_loss_`` or ``val_loss_`` is put.
_LOSSES = {
    "mel": "mel",
    "kl": "kl",
    "duration": "duration",
    "generator": "gen",
    "feature_maps": "fmaps",
    "discriminator": "disc",
}
_SCALARS = {
    "train/learning_rate": "lr",
    "train/discriminator_learning_rate": "lr_disc",
    "train/epoch": "epoch",
}


def train_tags(values: Mapping[str, float]) -> dict[str, float]:
    """A step's values under the ancestor's names, with the plain sum of the generator's losses that it had."""
    tagged = {_tag(name, "train"): value for name, value in values.items()}
    parts = [values[name] for name in _LOSSES if name in values and name != "discriminator"]
    return tagged | ({"train_summed_losses": sum(parts)} if parts else {})


def held_out_tags(values: Mapping[str, float]) -> dict[str, float]:
    """An evaluation's values under the ancestor's names, with its sum of mel and KL."""
    tagged = {_tag(name, "val"): value for name, value in values.items()}
    if {"mel", "kl"} <= values.keys():
        tagged["val_loss_mel_kl"] = values["mel"] + values["kl"]
    return tagged


def _tag(name: str, split: str) -> str:
    return f"{split}_loss_{_LOSSES[name]}" if name in _LOSSES else f"{split}_{name}"


def short_duration(seconds: float) -> str:
    """``42 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


# -- Where it goes ---------------------------------------------------------------------------------


class Log(Protocol):
    """Something that keeps curves, pictures and sound."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Keep numbers."""

    def figure(self, step: int, name: str, figure: Figure, title: str) -> None:
        """Keep a picture."""

    def audio(
        self, step: int, name: str, samples: NDArray[np.float32], sampling_rate: int, title: str
    ) -> None:
        """Keep sound [S] in [-1, 1]."""

    def close(self) -> None:
        """Write out what is left."""


class TensorBoard:
    """Event files for TensorBoard.

    Args:
        folder: Where they go.
        first_step: Where the run goes on from; what an earlier one logged after it is taken back.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self.writer = SummaryWriter(str(folder), purge_step=first_step or None)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Keep numbers."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def figure(self, step: int, name: str, figure: Figure, title: str) -> None:
        """Keep a picture."""
        self.writer.add_figure(name, figure, step)

    def audio(
        self, step: int, name: str, samples: NDArray[np.float32], sampling_rate: int, title: str
    ) -> None:
        """Keep sound."""
        self.writer.add_audio(name, samples[None], step, sample_rate=sampling_rate)

    def close(self) -> None:
        """Write out what is left."""
        self.writer.close()


class WeightsAndBiases:
    """A run at Weights & Biases; ``WANDB_MODE=offline`` keeps it in the folder.

    It is sent nothing but what is logged here and the configuration without its secrets: no code, no machine
    statistics, no console output, no error reports.

    Args:
        folder: Where its files go.
        config: The run's.

    Raises:
        MissingExtraError: ``wandb`` is not installed.
        ConfigError: It does not let this run in.
    """

    def __init__(self, folder: Path, config: TrainingConfig) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when wandb is imported
        try:
            self.wandb: Any = importlib.import_module("wandb")
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "report_to wandb needs Weights & Biases: pip install 'vits-suite[wandb]', or choose another log "
                "with --report_to tensorboard"
            ) from error
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self.run: Any = self._begin(folder, config)
        except self.wandb.errors.Error as error:
            raise ConfigError(
                f"report_to wandb: Weights & Biases cannot be used ({error}).",
                [
                    "log in with 'wandb login' or WANDB_API_KEY, or keep the run in its folder with WANDB_MODE=offline"
                ],
            ) from error
        # Its own step only ever grows; a resumed run steps back to its checkpoint.
        self.run.define_metric("global_step")
        self.run.define_metric("*", step_metric="global_step")

    def _begin(self, folder: Path, config: TrainingConfig) -> Any:
        offline = os.environ.get("WANDB_MODE") == "offline"
        return self.wandb.init(
            project=config.wandb_project or config.project_name,
            id=config.run_id,
            name=config.title,
            dir=str(folder),
            config=config.model_dump(mode="json", exclude=set(SECRETS)),
            resume=None if offline else "allow",
            settings=self.wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                silent=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
            ),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Keep numbers."""
        self.run.log({"global_step": step, **values})

    def figure(self, step: int, name: str, figure: Figure, title: str) -> None:
        """Keep a picture."""
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
        image = self.wandb.Image(np.asarray(canvas.buffer_rgba()), caption=title)
        self.run.log({"global_step": step, name: image})

    def audio(
        self, step: int, name: str, samples: NDArray[np.float32], sampling_rate: int, title: str
    ) -> None:
        """Keep sound."""
        sound = self.wandb.Audio(samples, sample_rate=sampling_rate, caption=title)
        self.run.log({"global_step": step, name: sound})

    def close(self) -> None:
        """Write out what is left."""
        self.run.finish()
        self.wandb.teardown()  # its files are written by a process of its own, a little later


def _serve(metrics: TrainingMetrics, host: str, port: int) -> tuple[Any, Any]:
    """Answer Prometheus from a thread; the server and its thread.

    Raises:
        ConfigError: The port is taken, or the address is not this machine's.
    """
    from prometheus_client import start_http_server

    try:
        return start_http_server(port, host, registry=metrics.registry)
    except OSError as error:
        raise ConfigError(
            f"metrics_port: {host}:{port} cannot be listened on ({error.strerror}).",
            ["choose another metrics_port, or 0 for any that is free"],
        ) from error


# -- The tracker -----------------------------------------------------------------------------------


class Tracker:
    """Reports a run. On any process but the main one it does nothing but look at the clock.

    Use it as a context manager, so that the bar, the logs and the port are closed whatever happens.

    Args:
        log_dir: Where logs and artefacts go.
        enabled: Whether this is the main process.
        tensorboard: Whether to write event files.
        total_steps: Steps of the whole run.
        first_step: Where it goes on from.
        samples_per_step: Recordings that a step sees, over all processes.
        config: The run's, for Weights & Biases and for ``metrics_port``; without it there is neither.

    Attributes:
        metrics: What Prometheus is told.
        metrics_address: Host and port to ask at, where there is one.
        evaluation_seconds: What evaluations have taken so far.

    Raises:
        MissingExtraError: ``report_to`` names a log that is not installed.
        ConfigError: ``metrics_port`` cannot be listened on.
    """

    def __init__(
        self,
        log_dir: Path,
        *,
        enabled: bool,
        tensorboard: bool,
        total_steps: int,
        first_step: int,
        samples_per_step: float = 1.0,
        config: TrainingConfig | None = None,
    ) -> None:
        self.enabled = enabled
        self.console = Console(quiet=not enabled, highlight=False, soft_wrap=True)
        self.total_steps = total_steps
        self.samples_per_step = samples_per_step
        self.metrics = TrainingMetrics()
        self.metrics.planned_steps.set(total_steps)
        self.metrics.step.set(first_step)
        self.metrics_address: tuple[str, int] | None = None
        self.evaluation_seconds = 0.0
        self._start = time.perf_counter()
        self._logs: list[Log] = []
        self._server: tuple[Any, Any] | None = None
        if enabled:
            self._open_logs(log_dir, first_step, config, tensorboard=tensorboard)
            if config:
                self._serve_metrics(config)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[losses]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (enabled and self.console.is_terminal),
        )
        self._task = self._bar.add_task("training", total=total_steps, completed=first_step, losses="")
        self._marks: list[float] = []

    @classmethod
    def of(cls, session: Session) -> Tracker:
        """The tracker that a run's configuration asks for; an evaluation alone leaves a training's logs be."""
        config = session.config
        return cls(
            config.output_dir / ("runs" if config.do_train else "evaluation"),
            enabled=session.accelerator.is_main_process,
            tensorboard=not {"tensorboard", "all"}.isdisjoint(config.report_to),
            total_steps=session.plan.total,
            first_step=session.step,
            samples_per_step=len(session.train) / session.plan.per_epoch,
            config=config,
        )

    def _open_logs(
        self, folder: Path, first_step: int, config: TrainingConfig | None, *, tensorboard: bool
    ) -> None:
        if tensorboard:
            self._logs.append(TensorBoard(folder, first_step))
        reports = config.report_to if config else ()
        # "all" means all that are installed, as it does in transformers.
        if config and ("wandb" in reports or ("all" in reports and importlib.util.find_spec("wandb"))):
            self._logs.append(WeightsAndBiases(folder, config))
        self._logs.append(Artefacts(folder / "artefacts", first_step))

    def _serve_metrics(self, config: TrainingConfig) -> None:
        if config.metrics_port is not None:
            self._server = _serve(self.metrics, config.metrics_host, config.metrics_port)
            self.metrics_address = self._server[0].server_address[:2]

    def __enter__(self) -> Tracker:
        self._bar.start()
        if self.metrics_address:
            self.say("metrics: http://{}:{}/metrics".format(*self.metrics_address))
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
        for log in self._logs:
            log.close()
        if self._server:
            server, thread = self._server
            server.shutdown()
            server.server_close()
            thread.join()

    @property
    def seconds(self) -> float:
        """Since the tracker was made."""
        return time.perf_counter() - self._start

    def say(self, line: str) -> None:
        """Print one line, above the bar if there is one."""
        self.console.print(line, markup=False)

    def begin_stage(self, name: str) -> None:
        """Name the bar, and measure the time of a step anew."""
        self._bar.update(self._task, description=name)
        self._marks = []

    def step_done(self, step: int, stage_end: int) -> None:
        """Advance the bar; after the first measured steps of a stage, say how long the rest of it will take."""
        self._bar.update(self._task, completed=step)
        self.metrics.step.set(step)
        if len(self._marks) > _UNMEASURED_STEPS + _MEASURED_STEPS:
            return
        self._marks.append(time.perf_counter())
        if len(self._marks) == _UNMEASURED_STEPS + _MEASURED_STEPS + 1:
            seconds = (self._marks[-1] - self._marks[_UNMEASURED_STEPS]) / _MEASURED_STEPS
            self.say(
                f"{seconds:.2f} s a step: about {short_duration(seconds * (stage_end - step))} left in this stage, "
                "evaluations and checkpoints apart"
            )

    def losses(
        self, step: int, values: Mapping[str, float], *, seconds_per_step: float | None = None
    ) -> None:
        """Log the losses and the gradient norms of a step."""
        text = " ".join(f"{name} {value:.3g}" for name, value in values.items() if "/" not in name)
        speed = "" if seconds_per_step is None else f" · {seconds_per_step:.2f} s/step"
        self._bar.update(self._task, losses=text + speed)
        if not self.console.is_terminal:
            self.say(f"step {step}/{self.total_steps} · {text}{speed}")
        for name, value in values.items():
            self.metrics.training_value(name, value)
        tagged = train_tags(values)
        if seconds_per_step:
            rate = self.samples_per_step / seconds_per_step
            self.metrics.step_seconds.set(seconds_per_step)
            self.metrics.samples_per_second.set(rate)
            tagged |= {"seconds_per_step": seconds_per_step, "samples_per_second": rate}
        self.scalars(step, tagged)

    def evaluated(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        """Log an evaluation: what came of it, what it took, and what share of the run all of them have taken.

        Args:
            step: Where it was.
            values: Held-out losses and distances; none without held-out recordings.
            seconds: What it took, pictures and speech included.
        """
        self.evaluation_seconds += seconds
        share = self.evaluation_seconds / max(self.seconds, self.evaluation_seconds, 1e-9)
        if values:
            figures = " · ".join(f"{name} {value:.4g}" for name, value in values.items())
            self.say(f"step {step}: held out · {figures} · {seconds:.1f} s, {share:.0%} of the run so far")
        for name, value in values.items():
            self.metrics.loss.labels("held_out", name).set(value)
        self.metrics.evaluations.inc()
        self.metrics.evaluation_seconds.inc(seconds)
        self.scalars(step, held_out_tags(values) | {"evaluation_seconds": seconds, "evaluation_share": share})

    def waiting(self, step: int, share: float) -> None:
        """Log the share of the steps' time that was spent waiting for batches."""
        self.metrics.data_wait_ratio.set(share)
        self.scalars(step, {"data_wait_share": share})

    def checkpoint_saved(self, step: int, seconds: float) -> None:
        """Count a checkpoint that is complete, and what writing and uploading it took."""
        self.metrics.checkpoints.inc()
        self.metrics.checkpoint_seconds.inc(seconds)
        self.metrics.checkpoint_step.set(step)

    def checkpoint_failed(self) -> None:
        """Count a checkpoint that could not be written or uploaded."""
        self.metrics.checkpoint_failures.inc()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers."""
        for name, network in (
            ("learning_rate", "generator"),
            ("discriminator_learning_rate", "discriminator"),
        ):
            if f"train/{name}" in values:
                self.metrics.learning_rate.labels(network).set(values[f"train/{name}"])
        if "train/epoch" in values:
            self.metrics.epoch.set(values["train/epoch"])
        for log in self._logs:
            log.scalars(step, {_SCALARS.get(name, name): value for name, value in values.items()})

    def figure(self, step: int, name: str, figure: Figure, *, title: str = "") -> None:
        """Log a picture."""
        for log in self._logs:
            log.figure(step, name, figure, title or name)

    def audio(
        self, step: int, name: str, samples: NDArray[np.float32], sampling_rate: int, *, title: str = ""
    ) -> None:
        """Log sound."""
        for log in self._logs:
            log.audio(step, name, samples, sampling_rate, title or name)
