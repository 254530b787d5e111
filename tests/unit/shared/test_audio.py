"""Decoding, resampling and PCM16, on sound made here."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

import shared.audio as audio_module
from shared.audio import (
    Audio,
    amplified,
    encode_wav,
    from_pcm16,
    k_weighting,
    loudness_lufs,
    read_audio,
    read_audio_header,
    resample,
    to_pcm16,
    trim_silence,
    write_flac,
    write_wav,
)
from shared.errors import UserError


def sine(frequency: float, seconds: float, rate: int, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(
        np.float32
    )


def loudest_frequency(samples: np.ndarray, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * rate / len(samples))


class TestPcm16:
    def test_every_value_but_the_lowest_survives_the_round_trip(self) -> None:
        every = np.arange(-32767, 32768, dtype=np.int16)
        np.testing.assert_array_equal(to_pcm16(from_pcm16(every)), every)

    def test_the_lowest_value_is_full_scale(self) -> None:
        assert from_pcm16(np.array([-32768], dtype=np.int16))[0] == -1.0

    @given(st.floats(-1, 1, width=32))
    def test_error_is_at_most_half_a_step(self, value: float) -> None:
        back = from_pcm16(to_pcm16(np.array([value], dtype=np.float32)))[0]
        assert abs(back - value) <= 0.5 / 32767 + 1e-7

    def test_clips_instead_of_wrapping(self) -> None:
        np.testing.assert_array_equal(to_pcm16(np.array([1.5, -1.5], dtype=np.float32)), [32767, -32767])


class TestResample:
    @pytest.mark.parametrize(("from_rate", "to_rate"), [(44100, 16000), (8000, 22050), (48000, 16000)])
    def test_keeps_duration_and_pitch(self, from_rate: int, to_rate: int) -> None:
        resampled = resample(sine(440, 1.0, from_rate), from_rate, to_rate)
        assert resampled.dtype == np.float32
        assert len(resampled) == to_rate
        assert loudest_frequency(resampled, to_rate) == pytest.approx(440, abs=1)
        middle = resampled[to_rate // 4 : -to_rate // 4]
        np.testing.assert_allclose(np.sqrt(np.mean(middle**2)), 0.5 / np.sqrt(2), rtol=1e-3)

    def test_removes_what_the_lower_rate_cannot_hold(self) -> None:
        aliased = resample(sine(7000, 1.0, 16000), 16000, 8000)
        assert np.abs(aliased[1000:-1000]).max() < 1e-3

    def test_equal_rates_are_the_identity(self) -> None:
        samples = sine(440, 0.1, 16000)
        assert resample(samples, 16000, 16000) is samples
        audio = Audio(samples, 16000)
        assert audio.resampled(16000) is audio


class TestRead:
    @pytest.mark.parametrize(
        ("name", "subtype", "tolerance"),
        [
            ("a.wav", "PCM_16", 1e-7), ("a.flac", "PCM_16", 1e-7), ("a.wav", "PCM_24", 1e-4),
            ("a.wav", "FLOAT", 1e-7),
        ],
    )  # fmt: skip
    def test_reads_back_what_was_written(
        self, tmp_path: Path, name: str, subtype: str, tolerance: float
    ) -> None:
        samples = from_pcm16(to_pcm16(sine(300, 0.5, 16000)))
        written = to_pcm16(samples) if subtype == "PCM_16" else samples
        soundfile.write(tmp_path / name, written, 16000, subtype=subtype)
        audio = read_audio(tmp_path / name)
        assert audio.sampling_rate == 16000
        assert audio.duration_seconds == 0.5
        np.testing.assert_allclose(audio.samples, samples, atol=tolerance)

    @pytest.mark.parametrize(("name", "subtype"), [("a.ogg", "VORBIS"), ("a.mp3", "MPEG_LAYER_III")])
    def test_lossy_formats_keep_length_and_pitch(self, tmp_path: Path, name: str, subtype: str) -> None:
        soundfile.write(tmp_path / name, sine(300, 1.0, 16000), 16000, subtype=subtype)
        audio = read_audio(tmp_path / name)
        assert audio.duration_seconds == pytest.approx(1.0, abs=0.1)  # codecs pad and cut whole blocks
        assert loudest_frequency(audio.samples, audio.sampling_rate) == pytest.approx(300, abs=2)
        assert np.abs(audio.samples).max() == pytest.approx(0.5, abs=0.05)

    @pytest.mark.parametrize("tag", [b"", b"ID3\x04\0\0\0\0\0\x0a" + bytes(10)], ids=["bare", "tagged"])
    def test_an_mp3_sounds_the_same_by_either_decoder(
        self, tag: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        buffer = io.BytesIO()
        soundfile.write(buffer, sine(300, 1.0, 44100), 44100, format="MP3")
        data = tag + buffer.getvalue()
        by_ffmpeg, rate = audio_module._read_by_ffmpeg(data, None)
        monkeypatch.setattr(audio_module, "_read_by_ffmpeg", None)  # the fast way does it alone
        fast = read_audio(data)
        assert fast.sampling_rate == rate == 44100
        np.testing.assert_allclose(fast.samples, by_ffmpeg[0], atol=1e-5)

    @pytest.mark.parametrize("where", [2000, 5000])
    def test_an_mp3_with_a_hole_is_refused_by_name(self, tmp_path: Path, where: int) -> None:
        soundfile.write(tmp_path / "a.mp3", sine(300, 2.0, 44100), 44100)
        data = bytearray((tmp_path / "a.mp3").read_bytes())
        data[where : where + 3000] = bytes(3000)
        (tmp_path / "a.mp3").write_bytes(data)
        with pytest.raises(UserError, match=r"a\.mp3 cannot be decoded"):
            read_audio(tmp_path / "a.mp3")

    def test_pcm16_files_come_back_bit_for_bit(self, tmp_path: Path) -> None:
        pcm = np.random.default_rng(0).integers(-32767, 32768, 4000).astype(np.int16)
        for name, write in (("a.wav", write_wav), ("a.flac", write_flac)):
            write(tmp_path / name, from_pcm16(pcm), 16000)
            np.testing.assert_array_equal(to_pcm16(read_audio(tmp_path / name).samples), pcm)

    def test_channels_are_averaged(self, tmp_path: Path) -> None:
        left, right = sine(300, 0.2, 16000), sine(500, 0.2, 16000)
        soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 16000, subtype="FLOAT")
        np.testing.assert_allclose(read_audio(tmp_path / "a.wav").samples, (left + right) / 2, atol=1e-6)

    def test_bytes_and_files_read_alike(self, tmp_path: Path) -> None:
        data = encode_wav(sine(300, 0.2, 22050), 22050)
        (tmp_path / "a.wav").write_bytes(data)
        from_bytes, from_file = read_audio(data), read_audio(tmp_path / "a.wav")
        np.testing.assert_array_equal(from_bytes.samples, from_file.samples)
        assert from_bytes.sampling_rate == from_file.sampling_rate == 22050

    def test_encoded_wav_is_mono_pcm16(self) -> None:
        info = soundfile.info(io.BytesIO(encode_wav(sine(300, 0.2, 16000), 16000)))
        assert (info.channels, info.samplerate, info.subtype, info.frames) == (1, 16000, "PCM_16", 3200)

    def test_header_tells_length_without_decoding_it_all(self, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "a.flac", np.zeros((24000, 2)), 48000)
        header = read_audio_header(tmp_path / "a.flac")
        assert (header.sampling_rate, header.channels, header.duration_seconds) == (48000, 2, 0.5)


class TestLoudness:
    """Against the figures of ITU-R BS.1770-4 and EBU Tech 3341."""

    def test_the_filters_are_the_standards_own_at_48_khz(self) -> None:
        (shelf, shelf_denominator), (high_pass, high_pass_denominator) = k_weighting(48000)
        np.testing.assert_allclose(shelf, [1.53512485958697, -2.69169618940638, 1.19839281085285], atol=1e-12)
        np.testing.assert_allclose(shelf_denominator, [1, -1.69065929318241, 0.73248077421585], atol=1e-12)
        np.testing.assert_allclose(high_pass, [1, -2, 1])
        np.testing.assert_allclose(
            high_pass_denominator, [1, -1.99004745483398, 0.99007225036621], atol=1e-12
        )

    @pytest.mark.parametrize("rate", [16000, 22050, 44100, 48000])
    def test_a_full_scale_sine_of_997_hz_reads_minus_3_01(self, rate: int) -> None:
        assert loudness_lufs(sine(997, 5.0, rate, level=1.0), rate) == pytest.approx(-3.01, abs=0.05)
        assert loudness_lufs(sine(997, 5.0, rate, level=0.1), rate) == pytest.approx(-23.01, abs=0.05)

    def test_pauses_do_not_count(self) -> None:
        """EBU Tech 3341, minimum requirements, signal 3: quieter parts fall to the relative gate."""
        quiet, loud = sine(1000, 10, 48000, 10 ** (-36 / 20)), sine(1000, 30, 48000, 10 ** (-20 / 20))
        alone = loudness_lufs(loud, 48000)
        assert loudness_lufs(np.concatenate([quiet, loud, quiet]), 48000) == pytest.approx(alone, abs=0.1)
        silence = np.zeros(48000 * 20, np.float32)
        assert loudness_lufs(np.concatenate([silence, loud]), 48000) == pytest.approx(alone, abs=0.1)

    def test_short_sound_and_silence_have_a_loudness_too(self) -> None:
        assert loudness_lufs(sine(997, 0.2, 16000, level=1.0), 16000) == pytest.approx(-3.01, abs=0.2)
        assert loudness_lufs(np.zeros(16000, np.float32), 16000) == -np.inf
        assert loudness_lufs(np.zeros(10, np.float32), 16000) == -np.inf

    def test_no_gain_clips(self) -> None:
        samples = sine(300, 0.1, 16000, level=0.5)
        louder, held_back = amplified(samples, 1.5)
        assert not held_back
        np.testing.assert_allclose(louder, 1.5 * samples, rtol=1e-6)
        loudest, held_back = amplified(samples, 100.0)
        assert held_back
        assert 20 * np.log10(np.abs(loudest).max()) == pytest.approx(-1.0, abs=1e-4)
        np.testing.assert_allclose(loudest / loudest.max(), samples / samples.max(), atol=1e-6)


class TestTrimming:
    @pytest.mark.parametrize("level", [1.0, 0.01])
    @pytest.mark.parametrize("noise", [0.0, 1e-3])
    @pytest.mark.parametrize("rate", [8000, 22050])
    def test_silence_is_cut_from_both_ends_but_for_a_margin(
        self, level: float, noise: float, rate: int
    ) -> None:
        """The recording's own level does not matter, nor does quiet noise."""
        speech = sine(200, 1.0, rate, level=0.9)
        clip = np.concatenate([np.zeros(rate), speech, np.zeros(2 * rate)])
        clip = level * (clip + noise * np.random.default_rng(0).standard_normal(len(clip)))
        trimmed = trim_silence(clip.astype(np.float32), rate)
        assert len(trimmed) / rate == pytest.approx(1.1, abs=0.045)
        begins = int(np.argmax(np.abs(trimmed) > 0.3 * level)) / rate
        assert begins == pytest.approx(0.05, abs=0.025)

    def test_pauses_inside_stay(self) -> None:
        speech = sine(200, 0.5, 16000)
        clip = np.concatenate([speech, np.zeros(16000, np.float32), speech])
        np.testing.assert_array_equal(trim_silence(clip, 16000), clip)

    def test_nothing_but_silence_stays_as_it_is(self) -> None:
        np.testing.assert_array_equal(trim_silence(np.zeros(5000, np.float32), 16000), np.zeros(5000))


class TestFaults:
    @pytest.mark.parametrize("read", [read_audio, read_audio_header])
    def test_each_names_its_file_and_says_what_to_do(self, tmp_path: Path, read) -> None:  # type: ignore[no-untyped-def]
        (tmp_path / "text.wav").write_text("no sound here")
        (tmp_path / "empty.wav").write_bytes(encode_wav(np.zeros(0, np.float32), 16000))
        (tmp_path / "nothing.wav").write_bytes(b"")
        for name, expected in [
            ("text.wav", "cannot be decoded"), ("empty.wav", "no audio|cannot be decoded"),
            ("nothing.wav", "cannot be decoded"), ("absent.wav", "does not exist"),
        ]:  # fmt: skip
            with pytest.raises(UserError, match=expected) as raised:
                read(tmp_path / name)
            assert name in str(raised.value)

    @pytest.mark.parametrize("read", [read_audio, read_audio_header])
    def test_a_wav_file_that_is_cut_short_is_noticed(self, tmp_path: Path, read) -> None:  # type: ignore[no-untyped-def]
        whole = encode_wav(sine(300, 1.0, 16000), 16000)
        (tmp_path / "a.wav").write_bytes(whole[: len(whole) // 2])
        for source in (tmp_path / "a.wav", whole[: len(whole) // 2]):
            with pytest.raises(UserError, match="cut short: it has 16,022 bytes of 32,044"):
                read(source)
        # A program that pipes a WAV file out cannot know its size.
        (tmp_path / "b.wav").write_bytes(whole[:4] + b"\xff" * 4 + whole[8:])
        read(tmp_path / "b.wav")

    def test_not_a_number_is_refused(self, tmp_path: Path) -> None:
        samples = sine(300, 0.1, 16000)
        samples[100] = np.nan
        soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
        with pytest.raises(UserError, match="not numbers"):
            read_audio(tmp_path / "a.wav")
