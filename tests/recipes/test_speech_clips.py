"""Reading a wav file: formats, rates, channels, and the ways in which it can be damaged."""

import numpy as np
import pytest
import torch
from torchaudio.functional import resample

from megalodon_tasks.recipes.speech.clips import ClipForm, DamagedClip, read_clip
from tests.recipes.speech_files import RATE, write_clip

WAVE = (np.sin(np.arange(44_100) / 20) * 20_000).astype(np.int16)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_every_sample_format_gives_the_same_samples(tmp_path, subtype):
    whole = subtype.startswith("PCM")
    values = WAVE.astype(np.int32) << 16 if whole else WAVE / 32_768
    write_clip(tmp_path / "a.wav", values, subtype=subtype)
    np.testing.assert_array_equal(read_clip(tmp_path / "a.wav", RATE), WAVE)


@pytest.mark.parametrize("rate", [44_100, 22_050, 8_000])
def test_other_rates_are_resampled_and_stereo_is_mixed_down(tmp_path, rate):
    stereo = np.stack([WAVE, np.zeros_like(WAVE)], axis=1)
    write_clip(tmp_path / "a.wav", stereo, rate=rate)
    found = read_clip(tmp_path / "a.wav", RATE)
    expected = resample(torch.from_numpy(WAVE / 2.0), rate, RATE).numpy()
    assert len(found) == len(expected)
    np.testing.assert_allclose(found, expected, atol=1.0)


def test_what_is_too_loud_is_cut_at_full_scale(tmp_path):
    write_clip(tmp_path / "a.wav", np.array([1.5, -1.5, 0.5]), subtype="FLOAT")
    assert read_clip(tmp_path / "a.wav", RATE).tolist() == [32_767, -32_768, 16_384]


def wav_bytes(tmp_path, values=WAVE, **format_):
    write_clip(tmp_path / "whole.wav", values, **format_)
    return (tmp_path / "whole.wav").read_bytes()


DAMAGE = {
    "empty": (lambda data: b"", "is empty"),
    "truncated": (lambda data: data[:5000], "cut short: its header announces 88244 bytes, it has 5000"),
    "one byte short": (lambda data: data[:-1], "is cut short"),
    "header alone": (lambda data: data[:44], "is cut short"),
    "not audio": (lambda data: b"<html>not found</html>" * 50, "is not audio"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_named_with_its_reason(tmp_path, kind):
    damage, reason = DAMAGE[kind]
    path = tmp_path / "a.wav"
    path.write_bytes(damage(wav_bytes(tmp_path)))
    with pytest.raises(DamagedClip, match=reason):
        read_clip(path, RATE)


def test_other_ways_to_be_unreadable(tmp_path):
    write_clip(tmp_path / "none.wav", np.zeros(0, np.int16))
    write_clip(tmp_path / "nan.wav", np.array([0.0, np.nan]), subtype="FLOAT")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "link.wav").symlink_to(tmp_path / "nowhere")
    for name, reason in {
        "none": "has no samples", "nan": "not finite", "folder": "cannot be read",
        "link": "cannot be read",
    }.items():  # fmt: skip
        with pytest.raises(DamagedClip, match=reason):
            read_clip(tmp_path / f"{name}.wav", RATE)


def test_a_size_that_nobody_knew_is_no_damage(tmp_path):
    data = bytearray(wav_bytes(tmp_path))
    data[4:8], data[40:44] = b"\xff\xff\xff\xff", b"\xff\xff\xff\xff"
    (tmp_path / "piped.wav").write_bytes(data)
    np.testing.assert_array_equal(read_clip(tmp_path / "piped.wav", RATE), WAVE)


@pytest.mark.parametrize(("rate", "samples"), [(0, 5), (5, 0)])
def test_a_form_without_samples_is_refused(rate, samples):
    with pytest.raises(ValueError, match="of the clips must be at least 1"):
        ClipForm(rate, samples)
