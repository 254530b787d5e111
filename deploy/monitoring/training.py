"""The dashboard of training: how far runs are, whether they learn, and what a lost node would cost."""

from deploy.monitoring.grafana import RATIO, SECONDS, Dashboard, Panel, Row

LEFT = "(vits_training_planned_steps{$pods} - vits_training_step{$pods}) * vits_training_step_seconds{$pods}"

TRAINING = Dashboard(
    uid="vits-training",
    title="VITS · training",
    description="How far training runs are, whether they learn, and what a lost node would cost.",
    variables=[("namespace", "vits_training_step"), ("instance", "vits_training_step")],
    rows=[
        Row(
            "How far is it?",
            [
                Panel(
                    "Done",
                    "Steps done of the steps planned.",
                    [("{{instance}}", "vits_training_step{$pods} / vits_training_planned_steps{$pods}")],
                    unit=RATIO,
                    kind="stat",
                    width=6,
                ),
                Panel(
                    "Time left",
                    "At the pace of the last step; evaluations come on top.",
                    [
                        (
                            "{{instance}}",
                            LEFT,
                        )
                    ],
                    unit=SECONDS,
                    kind="stat",
                    width=6,
                ),
                Panel(
                    "Epoch",
                    "Passes over the training recordings.",
                    [("{{instance}}", "vits_training_epoch{$pods}")],
                    kind="stat",
                    width=6,
                ),
                Panel(
                    "Steps since the last checkpoint",
                    "What a lost node would cost.",
                    [("{{instance}}", "vits_training_step{$pods} - vits_training_checkpoint_step{$pods}")],
                    kind="stat",
                    width=6,
                ),
            ],
        ),
        Row(
            "Does it learn?",
            [
                Panel(
                    "Mel loss",
                    "When it rises on held-out recordings and falls in training, the run learns by heart.",
                    [("{{split}} {{instance}}", 'vits_training_loss{$pods, loss="mel"}')],
                ),
                Panel(
                    "All losses",
                    "Generator and discriminator balance each other: none of these has to fall for good.",
                    [("{{split}} {{loss}}", "vits_training_loss{$pods}")],
                    log=True,
                ),
                Panel(
                    "Gradients",
                    "Norms before clipping. A jump that stays is the beginning of a divergence.",
                    [("{{network}} {{instance}}", "vits_training_gradient_norm{$pods}")],
                    log=True,
                ),
                Panel(
                    "Learning rates",
                    "Of each network.",
                    [("{{network}} {{instance}}", "vits_training_learning_rate{$pods}")],
                    log=True,
                    width=24,
                ),
            ],
        ),
        Row(
            "How fast is it?",
            [
                Panel(
                    "Time of a step",
                    "As last logged. Another program on the same cores multiplies it.",
                    [("{{instance}}", "vits_training_step_seconds{$pods}")],
                    unit=SECONDS,
                ),
                Panel(
                    "Recordings a second",
                    "Recordings trained on in a second, over all processes of a run.",
                    [("{{instance}}", "vits_training_samples_per_second{$pods}")],
                ),
                Panel(
                    "Time for other things",
                    "Share of the time that they take; checkpoints are written behind the run's back.",
                    [
                        (
                            "evaluation {{instance}}",
                            "rate(vits_training_evaluation_seconds_total{$pods}[30m])",
                        ),
                        (
                            "checkpoints {{instance}}",
                            "rate(vits_training_checkpoint_seconds_total{$pods}[30m])",
                        ),
                    ],
                    unit=RATIO,
                ),
            ],
        ),
        Row(
            "Is it safe?",
            [
                Panel(
                    "Steps, and steps that are safe",
                    "The second line follows the first in stairs. Their distance is what would be lost.",
                    [
                        ("done {{instance}}", "vits_training_step{$pods}"),
                        ("safe {{instance}}", "vits_training_checkpoint_step{$pods}"),
                    ],
                ),
                Panel(
                    "Checkpoints",
                    "Completed, and failed, in an hour.",
                    [
                        ("completed {{instance}}", "increase(vits_training_checkpoints_total{$pods}[1h])"),
                        (
                            "failed {{instance}}",
                            "increase(vits_training_checkpoint_failures_total{$pods}[1h])",
                        ),
                    ],
                ),
                Panel(
                    "Evaluations",
                    "Done so far.",
                    [("{{instance}}", "vits_training_evaluations_total{$pods}")],
                ),
            ],
        ),
    ],
)
