"""The training forward and the small tensor functions that it is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monotonic_align import maximum_path
from shared.modeling import TrainingOutput, VitsForTraining, resblock_type
from shared.modeling.model import expand, log_likelihood, sequence_mask, slice_frames

MakeModel = Callable[..., VitsForTraining]
B, T, F, D, HOP = 3, 6, 40, 4, 8
TOKENS, FRAMES = torch.tensor([6, 3, 5]), torch.tensor([40, 17, 31])
#: The second slice runs past the end of its item, into the batch's padding.
STARTS = [30, 12, 0]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(*, speakers: bool = False) -> dict[str, Any]:
    """A ragged batch with all its noise given."""
    values: dict[str, Any] = {
        "input_ids": torch.randint(1, 20, (B, T), generator=torch.Generator().manual_seed(1)),
        "token_lengths": TOKENS,
        "labels": normal(B, 9, F, seed=2).abs() * sequence_mask(FRAMES, F)[:, None],
        "frame_lengths": FRAMES,
        "aligner": maximum_path,
        "segment_frames": 8,
        "slice_starts": torch.tensor(STARTS),
        "posterior_noise": normal(B, D, F, seed=3),
        "duration_noise": normal(B, 2, T, seed=4),
    }
    return values | ({"speaker_id": torch.tensor([2, 0, 1])} if speakers else {})


def one_item(values: dict[str, Any], item: int) -> dict[str, Any]:
    """One item of the batch, cut to its own lengths."""
    tokens, frames = int(TOKENS[item]), int(FRAMES[item])
    ends = {"input_ids": tokens, "duration_noise": tokens, "labels": frames, "posterior_noise": frames}
    cut = {
        name: value[item : item + 1] if isinstance(value, Tensor) else value for name, value in values.items()
    }
    return cut | {name: cut[name][..., :end] for name, end in ends.items()}


# --- The small functions ---------------------------------------------------------------------------


def test_sequence_mask() -> None:
    expected = [[False, False, False], [True, False, False], [True, True, True]]
    assert sequence_mask(torch.tensor([0, 1, 3]), 3).tolist() == expected


def test_log_likelihood_is_the_gaussian_density() -> None:
    latents, mean, log_std = normal(2, D, 7), normal(2, D, 5, seed=1), normal(2, D, 5, seed=2)
    prior = torch.distributions.Normal(mean[:, :, None], torch.exp(log_std)[:, :, None])
    expected = prior.log_prob(latents[..., None]).sum(1)
    torch.testing.assert_close(log_likelihood(latents, mean, log_std), expected, atol=1e-4, rtol=1e-5)


def test_log_likelihood_is_float32_whatever_the_autocast() -> None:
    """In half precision exp(−2 logσ) overflows, and bfloat16 has three digits."""
    latents, mean, log_std = normal(2, D, 7), normal(2, D, 5, seed=1), normal(2, D, 5, seed=2) - 6
    expected = log_likelihood(latents, mean, log_std)
    with torch.autocast("cpu", torch.bfloat16):
        scores = log_likelihood(latents, mean, log_std)
        from_half = log_likelihood(latents.half(), mean.half(), log_std.half())
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, atol=0, rtol=0)
    assert from_half.dtype == torch.float32
    assert from_half.isfinite().all()


def test_expand_repeats_each_token() -> None:
    values = normal(2, D, 4)
    durations = torch.tensor([[2, 0, 3, 1], [0, 1, 1, 0]], dtype=torch.int32)
    expanded = expand(values, durations, 7)
    for item, total in enumerate([6, 2]):
        repeated = values[item].repeat_interleave(durations[item], dim=1)
        torch.testing.assert_close(expanded[item, :, :total], repeated, atol=0, rtol=0)
        assert not expanded[item, :, total:].any()


def test_expand_carries_gradient_to_every_spoken_token() -> None:
    values = normal(1, D, 3).requires_grad_()
    expand(values, torch.tensor([[2, 0, 1]]), 4).sum().backward()
    assert values.grad is not None
    assert values.grad[0, 0].tolist() == [2.0, 0.0, 1.0]


def test_slice_frames_pads_with_zeros_past_the_end() -> None:
    values = torch.arange(1.0, 7.0).view(1, 1, 6).expand(3, 2, 6)
    sliced = slice_frames(values, torch.tensor([0, 4, 9]), 3)
    assert sliced.shape == (3, 2, 3)
    assert sliced[:, 1].tolist() == [[1.0, 2.0, 3.0], [5.0, 6.0, 0.0], [0.0, 0.0, 0.0]]


# --- The training forward --------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "one speaker": {},
    "many speakers": {"num_speakers": 3, "speaker_embedding_size": 4},
    "deterministic durations": {"use_stochastic_duration_prediction": False},
    "second residual block": {"resblock_type": "2"},
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> dict[str, Any]:
    return KINDS[request.param]


def test_shapes_and_lengths(make_model: MakeModel, kind: dict[str, Any]) -> None:
    model = make_model(**kind)
    assert model.hop_length == HOP
    assert resblock_type(model.config) == kind.get("resblock_type", "1")
    output = model.training_forward(**batch(speakers="num_speakers" in kind))
    assert output.waveform.shape == (B, 1, 8 * HOP)
    for name in ("posterior_log_std", "flow_latents", "prior_mean", "prior_log_std"):
        assert getattr(output, name).shape == (B, D, F), name
    assert output.durations.sum(1).tolist() == FRAMES.tolist()
    assert ((output.durations > 0) == sequence_mask(TOKENS, T)).all()
    assert output.duration_loss.shape == (B,)
    assert output.token_mask.sum((1, 2)).tolist() == TOKENS.tolist()
    assert output.frame_mask.sum((1, 2)).tolist() == FRAMES.tolist()
    outside = ~sequence_mask(FRAMES, F)[:, None].expand(-1, D, -1)
    for name in ("posterior_log_std", "flow_latents", "prior_mean", "prior_log_std"):
        assert not getattr(output, name)[outside].any(), name


def kl(output: TrainingOutput) -> Tensor:
    """[B] the KL loss of each item, from what the forward hands out."""
    loss = output.prior_log_std - output.posterior_log_std - 0.5
    loss = loss + 0.5 * (output.flow_latents - output.prior_mean) ** 2 * torch.exp(-2 * output.prior_log_std)
    return (loss * output.frame_mask).sum((1, 2)) / output.frame_mask.sum((1, 2))


def test_padding_takes_no_part(
    make_model: MakeModel, kind: dict[str, Any], without_dropout: Callable[[nn.Module], None]
) -> None:
    """An item has the same alignment, losses and slice in a ragged batch as alone."""
    model = make_model(**kind)
    model.train(True)
    without_dropout(model)
    model.text_encoder.eval()  # its attention has a dropout that is not a module
    values = batch(speakers="num_speakers" in kind)
    together = model.training_forward(**values)
    for item in range(B):
        alone = model.training_forward(**one_item(values, item))
        assert alone.durations[0].tolist() == together.durations[item, : TOKENS[item]].tolist()
        # float32 through the splines of a random predictor: the exact claim is tested in float64.
        torch.testing.assert_close(alone.duration_loss[0], together.duration_loss[item], atol=0, rtol=2e-4)
        torch.testing.assert_close(kl(alone)[0], kl(together)[item], atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(alone.waveform[0], together.waveform[item], atol=1e-5, rtol=0)


def test_slice_is_the_decoding_of_its_latents(make_model: MakeModel, kind: dict[str, Any]) -> None:
    model = make_model(**kind)
    values = batch(speakers="num_speakers" in kind)
    output = model.training_forward(**values)
    speaker = model.speaker_embedding(values.get("speaker_id"))
    mean, log_std = model.posterior(values["labels"], output.frame_mask, speaker)
    latents = (mean + values["posterior_noise"] * torch.exp(log_std)) * output.frame_mask
    torch.testing.assert_close(output.flow_latents, model.flow(latents, output.frame_mask, speaker))
    for item, start in enumerate(STARTS):
        row = None if speaker is None else speaker[item : item + 1]
        decoded = model.decoder(latents[item : item + 1, :, start : start + 8], row)
        torch.testing.assert_close(output.waveform[item], decoded[0], atol=1e-5, rtol=0)


def test_posterior_is_that_of_transformers(make_model: MakeModel, kind: dict[str, Any]) -> None:
    model = make_model(**kind)
    values = batch(speakers="num_speakers" in kind)
    speaker = model.speaker_embedding(values.get("speaker_id"))
    mask = sequence_mask(FRAMES, F)[:, None].float()
    _, mean, log_std = model.posterior_encoder(values["labels"], mask, speaker)
    ours = model.posterior(values["labels"], mask, speaker)
    torch.testing.assert_close(ours, (mean, log_std), atol=0, rtol=0)


def test_clip_shorter_than_a_slice(make_model: MakeModel) -> None:
    """It is decoded whole, followed by zero latents: no negative index."""
    model = make_model()
    values = one_item(batch(), 1) | {"segment_frames": 32, "slice_starts": None}
    output = model.training_forward(**values)
    assert output.slice_starts.tolist() == [0]
    assert output.waveform.shape == (1, 1, 32 * HOP)
    mean, log_std = model.posterior(values["labels"], output.frame_mask, None)
    latents = mean + values["posterior_noise"] * torch.exp(log_std)
    expected = model.decoder(nn.functional.pad(latents, (0, 32 - latents.shape[2])))
    torch.testing.assert_close(output.waveform, expected, atol=1e-5, rtol=0)


def test_slices_are_drawn_over_the_whole_clip(make_model: MakeModel) -> None:
    model = make_model()
    values = batch() | {"slice_starts": None, "segment_frames": 15}
    torch.manual_seed(0)
    with torch.no_grad():
        starts = torch.stack([model.training_forward(**values).slice_starts for _ in range(60)])
    assert starts.min(0).values.tolist() == [0, 0, 0]
    assert (starts.max(0).values <= FRAMES - 15).all()
    assert starts[:, 1].max() == 2  # the last start of 17 frames; drawn with probability 1/3


def test_every_row_has_its_own_speaker(make_model: MakeModel) -> None:
    model = make_model(**KINDS["many speakers"])
    values = batch(speakers=True)
    output = model.training_forward(**values)
    other = model.training_forward(**values | {"speaker_id": torch.tensor([2, 1, 1])})
    changed = (output.waveform - other.waveform).abs().amax((1, 2)) > 1e-6
    assert changed.tolist() == [False, True, False]


def test_outputs_are_float32_under_autocast(make_model: MakeModel, kind: dict[str, Any]) -> None:
    model = make_model(**kind)
    values = batch(speakers="num_speakers" in kind)
    full = model.training_forward(**values)
    with torch.autocast("cpu", torch.bfloat16):
        output = model.training_forward(**values)
    for field in fields(TrainingOutput):
        value = getattr(output, field.name)
        if value.is_floating_point():
            assert value.dtype == torch.float32, field.name
            assert value.isfinite().all(), field.name
    assert (output.waveform - full.waveform).abs().max() < 0.1
    assert output.durations.dtype == torch.int32


def test_duration_predictor_works_in_float32_under_autocast(make_model: MakeModel) -> None:
    """The spline divides by small widths: the same hidden states give the same loss to the last bit."""
    model = make_model()
    hidden, mask = normal(1, 8, T), torch.ones(1, 1, T)
    durations, noise = torch.full((1, T), 3, dtype=torch.int32), normal(1, 2, T, seed=1)
    expected = model.duration_loss(hidden, mask, durations, None, noise)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.duration_loss(hidden, mask, durations, None, noise)
    torch.testing.assert_close(loss, expected, atol=0, rtol=0)


def test_deterministic_duration_loss_is_the_squared_error_of_logs(make_model: MakeModel) -> None:
    model = make_model(**KINDS["deterministic durations"])
    values = batch()
    output = model.training_forward(**values)
    text = model.text_encoder(values["input_ids"], output.token_mask.transpose(1, 2), output.token_mask[:, 0])
    predicted = model.duration_predictor(text.last_hidden_state.transpose(1, 2), output.token_mask)[:, 0]
    for item, tokens in enumerate(TOKENS):
        error = predicted[item, :tokens] - torch.log(output.durations[item, :tokens] + 1e-6)
        torch.testing.assert_close(output.duration_loss[item], (error**2).sum())


@pytest.mark.parametrize("name", ["one speaker", "many speakers", "deterministic durations"])
def test_gradients_reach_what_each_loss_may_teach(make_model: MakeModel, name: str) -> None:
    """Waveform: posterior and decoder. Durations: their predictor alone. KL: all but those two."""
    model = make_model(**KINDS[name])
    speakers = name == "many speakers"

    def taught(loss: Callable[[TrainingOutput], Tensor]) -> set[str]:
        model.zero_grad()
        loss(model.training_forward(**batch(speakers=speakers))).sum().backward()
        return {
            key.split(".")[0] for key, p in model.named_parameters() if p.grad is not None and p.grad.any()
        }

    speaker = {"embed_speaker"} if speakers else set()
    assert taught(lambda output: output.waveform**2) == {"posterior_encoder", "decoder"} | speaker
    assert taught(lambda output: output.duration_loss) == {"duration_predictor"}
    assert taught(kl) == {"text_encoder", "posterior_encoder", "flow"} | speaker


def test_forward_trains_when_it_is_given_labels(make_model: MakeModel) -> None:
    model = make_model()
    values = batch()
    torch.testing.assert_close(model(**values).waveform, model.training_forward(**values).waveform)
    with torch.no_grad():
        assert model(values["input_ids"]).waveform.shape[0] == B


def test_resblock2_of_hifi_gan(make_model: MakeModel) -> None:
    """x ← x + conv(leaky_relu(x)), a dilation a step."""
    block: Any = make_model(resblock_type="2").decoder.resblocks[0]
    assert [convolution.dilation for convolution in block.convs] == [(1,), (3,)]
    hidden = expected = normal(1, 4, 20)
    for convolution, dilation in zip(block.convs, (1, 3), strict=True):
        activated = nn.functional.leaky_relu(expected, 0.1)
        expected = expected + nn.functional.conv1d(
            activated, convolution.weight, convolution.bias, padding=dilation, dilation=dilation
        )
    torch.testing.assert_close(block(hidden), expected)
