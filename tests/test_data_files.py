"""Stores of images and arrays: every pixel in its place, piece by piece, and one sentence for what cannot be read."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from PIL import Image

import rlpre
from rlpre import FrameStore, RlpreError
from rlpre.data.files import natural_order

rng = np.random.default_rng(0)
CHW = rng.integers(0, 256, (7, 3, 8, 6), np.uint8)
HWC = CHW.transpose(0, 2, 3, 1)
START = np.array([1, 0, 0, 0, 1, 0, 0], bool)
ENDS = {"terminated": np.array([0, 0, 1, 0, 0, 0, 0], bool), "truncated": np.array([0, 0, 0, 0, 0, 1, 0], bool)}
KNOWN = {"action": np.array([2, 0, 1, -1, 0, 1, -1]), "reward": np.array([0.1, 0, 1, 0, 0, 1e-9, 0]), **ENDS}


def everything(store: FrameStore) -> np.ndarray:
    return store.frames(np.arange(len(store)))


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **({"lossless": True} if path.suffix == ".webp" else {}))


def film(folder: Path, images: np.ndarray = HWC, suffix: str = "png") -> Path:
    for number, image in enumerate(images, start=7):  # 7.png .. 13.png: not in the order of their letters
        save(folder / f"frame{number}.{suffix}", image)
    return folder


def test_natural_order() -> None:
    names = ["frame10.png", "b2/x", "frame9.png", "Frame1a.png", "²", "b10/x", "frame09.png"]
    expected = ["b2/x", "b10/x", "Frame1a.png", "frame9.png", "frame09.png", "frame10.png", "²"]
    assert sorted(names, key=natural_order) == expected


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tiff", "TGA"])
def test_images_of_one_folder_are_one_sequence(tmp_path: Path, suffix: str) -> None:
    folder = film(tmp_path / "film", suffix=suffix)
    store = rlpre.from_images(folder, tmp_path / "s")
    np.testing.assert_array_equal(everything(store), CHW)
    np.testing.assert_array_equal(store.episode, 0)
    assert store.action_space is None
    assert not store.acted.any()
    assert store.tasks == ["film"]
    store.verify()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["film", "s"]


def test_each_folder_is_a_sequence(tmp_path: Path) -> None:
    for name, images in (("run10", HWC[:3]), ("run9", HWC[3:5]), ("deep/er", HWC[5:])):
        film(tmp_path / "data" / name, images)
    (tmp_path / "data" / "run9" / "again").symlink_to(tmp_path / "data")
    for name in ("notes.txt", "run9/LICENSE", "run9/a.TXT", ".DS_Store"):
        (tmp_path / "data" / name).write_text("not an image")
    film(tmp_path / "data" / ".hidden", HWC[:, :3])
    with pytest.warns(UserWarning, match=r"files of .*data that are no images are left out: 2 \.txt, 1 LICENSE"):
        store = rlpre.from_images(tmp_path / "data", tmp_path / "s")
    assert store.tasks == ["deep/er", "run9", "run10"]
    np.testing.assert_array_equal(everything(store), CHW[[5, 6, 3, 4, 0, 1, 2]])
    np.testing.assert_array_equal(store.column("task"), [0, 0, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal(store.episode, store.column("task"))


def test_images_are_resized_and_converted_on_request(tmp_path: Path) -> None:
    folder = film(tmp_path / "film")
    save(folder / "other.png", np.full((20, 10), 99, np.uint8))
    store = rlpre.from_images(folder, tmp_path / "s", size=(10, 12), channels=3)
    assert store.space.shape == (3, 10, 12)
    assert (store.frames([7]) == 99).all()
    assert rlpre.from_images(folder, tmp_path / "gray", size=(4, 4), channels=1).space.shape == (1, 4, 4)


RAMP = np.stack(np.broadcast_arrays(np.linspace(0, 255, 48)[None], np.linspace(255, 0, 40)[:, None], 128), -1)
PHOTO = Image.fromarray(RAMP.astype(np.uint8))
TURNED = Image.Exif()
TURNED[0x0112] = 3  # upside down
CLEAR = Image.fromarray(np.dstack([RAMP, np.full((40, 48), 128)]).astype(np.uint8))


@pytest.mark.parametrize(
    ("name", "image", "options", "expected", "tolerance"),
    [
        ("cmyk.jpg", PHOTO.convert("CMYK"), {"quality": 95}, RAMP, 2),
        ("photo.jfif", PHOTO, {"format": "JPEG", "quality": 95}, RAMP, 2),
        ("turned.jpg", PHOTO.rotate(180), {"exif": TURNED, "quality": 95}, RAMP, 2),
        ("palette.png", PHOTO.quantize(256), {}, RAMP, 10),
        ("clear.png", CLEAR, {}, np.dstack([RAMP, np.full((40, 48), 128)]), 1),
        ("hole.png", PHOTO, {"transparency": PHOTO.getpixel((0, 0))}, np.dstack([RAMP, np.full((40, 48), 255)]), 1),
    ],
)
def test_frames_are_what_a_viewer_shows(
    tmp_path: Path, name: str, image: Image.Image, options: dict[str, Any], expected: np.ndarray, tolerance: float
) -> None:
    (tmp_path / "film").mkdir()
    image.save(tmp_path / "film" / name, **options)
    (frame,) = everything(rlpre.from_images(tmp_path / "film", tmp_path / "s"))
    assert np.abs(frame.transpose(1, 2, 0) - expected).mean() < tolerance
    (frame,) = everything(rlpre.from_images(tmp_path / "film", tmp_path / "three", channels=3))
    shown = RAMP / 2 if name == "clear.png" else RAMP
    assert np.abs(frame.transpose(1, 2, 0) - shown).mean() < max(tolerance, 1.5)


def test_transparent_pixels_are_black(tmp_path: Path) -> None:
    for value in (0, 255):
        save(tmp_path / "film" / f"{value}.png", np.full((4, 4, 4), (value, value, value, 0), np.uint8))
    for channels in (1, 3):
        assert not everything(rlpre.from_images(tmp_path / "film", tmp_path / str(channels), channels=channels)).any()


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_the_upper_bits_of_deep_images_are_kept_with_a_warning(tmp_path: Path, channels: int | None) -> None:
    deep = np.linspace(0, 65_535, 40 * 48).astype(np.uint16).reshape(40, 48)
    save(tmp_path / "film" / "1.png", deep)
    (tmp_path / "film" / "2.pgm").write_bytes(b"P5 48 40 65535 " + deep.astype(">u2").tobytes())
    save(tmp_path / "film" / "3.tif", deep)
    with pytest.warns(UserWarning, match="of the 16-bit images in .*film only the upper 8 bits are kept"):
        store = rlpre.from_images(tmp_path / "film", tmp_path / "s", channels=channels)
    np.testing.assert_array_equal(everything(store), np.broadcast_to(deep >> 8, (3, channels or 1, 40, 48)))


def test_a_long_film_comes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlpre.data.store.SHARD_ROWS", 16)  # two images at a time, a shard of sixteen
    store = rlpre.from_images(film(tmp_path / "film", np.repeat(HWC, 5, axis=0)), tmp_path / "s")
    assert [shard["rows"] for shard in store.manifest["shards"]] == [16, 16, 3]
    np.testing.assert_array_equal(everything(store), np.repeat(CHW, 5, axis=0))
    np.testing.assert_array_equal(store.episode, 0)
    assert store.unchanged == pytest.approx(28 / 34)


def bad_size(folder: Path) -> None:
    save(film(folder) / "frame8.png", HWC[0, :5])


def bad_channels(folder: Path) -> None:
    save(film(folder) / "frame9.png", HWC[0, :, :, 0])


def bad_file(folder: Path) -> None:
    (film(folder) / "frame10.png").write_bytes(b"\x89PNG nothing")


def float_pixels(folder: Path) -> None:
    save(folder / "1.tif", np.full((4, 4), 0.5, np.float32))


def moving(folder: Path) -> None:
    folder.mkdir()
    images = [Image.fromarray(image) for image in HWC[:2]]
    images[0].save(folder / "1.gif", save_all=True, append_images=images[1:])


@pytest.mark.parametrize(
    ("prepare", "change", "message"),
    [
        (bad_size, {}, r"frame7\.png is \(3, 8, 6\) .* and .*frame8\.png \(3, 5, 6\): give size="),
        (bad_channels, {}, r"frame7\.png is \(3, 8, 6\) .* and .*frame9\.png \(1, 8, 6\): give size="),
        (bad_file, {}, r"frame10\.png cannot be read as an image \(.+\): remove it"),
        (
            float_pixels,
            {"channels": 1},
            r"1\.tif has pixels of mode F, whose range is unknown: save it as 8-bit RGB or gray",
        ),
        (moving, {"channels": 3}, r"1\.gif holds 2 images: save each as a file of its own"),
        (film, {"size": (0, 4)}, r"cannot be resized to \(0, 4\)"),
        (film, {"channels": 2}, "cannot be converted to 2 channels"),
        (Path.mkdir, {}, "holds no images"),
        (lambda folder: None, {}, "is not a folder"),
    ],
)
def test_bad_folders(tmp_path: Path, prepare: Callable[[Path], Any], change: dict[str, Any], message: str) -> None:
    prepare(tmp_path / "data")
    with pytest.raises(RlpreError, match=message):
        rlpre.from_images(tmp_path / "data", tmp_path / "s", **change)
    assert {path.name for path in tmp_path.iterdir()} <= {"data"}


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    film(tmp_path / "film")
    with pytest.raises(RlpreError, match="film is there already"):
        rlpre.from_arrays(CHW, tmp_path / "film")
    assert len(list((tmp_path / "film").iterdir())) == 7


def test_what_a_killed_import_left_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / ".s.part").mkdir()
    (tmp_path / ".s.part" / "manifest.json").write_text("{}")
    np.testing.assert_array_equal(everything(rlpre.from_arrays(CHW, tmp_path / "s")), CHW)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize(
    "array", [CHW, HWC, CHW[:, 0], CHW[:, :1], np.repeat(CHW, 4, 1)[:, :, :, [0] * 30].repeat(3, 2)]
)
def test_layouts_are_found(tmp_path: Path, array: np.ndarray) -> None:
    store = rlpre.from_arrays(array, tmp_path / "s")
    expected = array[:, None] if array.ndim == 3 else CHW if array.shape == HWC.shape else array
    np.testing.assert_array_equal(everything(store), expected)
    assert store.action_space is None
    np.testing.assert_array_equal(store.episode, 0)


def test_layouts_that_the_shape_does_not_tell(tmp_path: Path) -> None:
    symbols = np.zeros((2, 7, 7, 9), np.uint8)  # three stacked symbolic frames of MiniGrid
    with pytest.raises(RlpreError, match=r"have shape \(7, 7, 9\).*give layout='CHW'"):
        rlpre.from_arrays(symbols, tmp_path / "s")
    assert rlpre.from_arrays(symbols, tmp_path / "s", layout="HWC").space.shape == (9, 7, 7)
    with pytest.raises(RlpreError, match="unknown layout 'HW'"):
        rlpre.from_arrays(symbols, tmp_path / "t", layout="HW")


@pytest.mark.parametrize("how", ["npy", "npz", "compressed", "fortran"])
def test_files_give_what_arrays_give(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlpre.data.store.SHARD_ROWS", 8)  # so that episodes come one by one
    columns = {**KNOWN, "episode_start": START}
    expected = rlpre.from_arrays(CHW, tmp_path / "expected", **columns)
    np.testing.assert_array_equal(everything(expected), CHW)
    for name, values in columns.items():
        np.testing.assert_array_equal(expected.column(name), values)
    assert expected.action_space == spaces.Discrete(3)
    path = tmp_path / ("frames.npy" if how == "npy" else "frames.npz")
    if how == "npy":
        np.save(path, HWC)
        found = rlpre.from_arrays(path, tmp_path / "s", **columns)
    else:
        saver = np.savez_compressed if how == "compressed" else np.savez
        saver(path, pixels=np.asfortranarray(HWC) if how == "fortran" else HWC, **columns)
        found = rlpre.from_arrays(path, tmp_path / "s")
    assert found.hash == expected.hash


def test_the_key_of_the_frames(tmp_path: Path) -> None:
    np.savez(path := tmp_path / "two.npz", left=CHW, right=CHW[::-1])
    with pytest.raises(RlpreError, match=r"holds left, right: name the array of frames with key="):
        rlpre.from_arrays(path, tmp_path / "s")
    with pytest.raises(RlpreError, match="unknown array 'rihgt': did you mean 'right'"):
        rlpre.from_arrays(path, tmp_path / "s", key="rihgt")
    with pytest.warns(UserWarning, match=r"arrays left of .*two\.npz are left out"):
        store = rlpre.from_arrays(path, tmp_path / "s", key="right")
    np.testing.assert_array_equal(everything(store), CHW[::-1])


def test_episodes_without_starts(tmp_path: Path) -> None:
    by_actions = rlpre.from_arrays(CHW, tmp_path / "a", **KNOWN)
    np.testing.assert_array_equal(by_actions.column("episode_start"), START)
    by_flags = rlpre.from_arrays(CHW, tmp_path / "b", terminated=[0, 0, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(by_flags.episode, [0, 0, 0, 1, 1, 1, 1])


def test_actions_without_a_final_frame_are_left_out_with_a_warning(tmp_path: Path) -> None:
    """As in sets of transitions: every row has an action, and the frame after the last one is missing."""
    action = rng.normal(size=(7, 2)).astype(np.float32)
    ends = {"terminated": [0, 0, 1, 0, 0, 0, 0], "truncated": [0, 0, 0, 0, 0, 0, 1]}
    with pytest.warns(UserWarning, match="after the last action is missing in 2 episodes of the array"):
        store = rlpre.from_arrays(CHW, tmp_path / "s", action=action, reward=np.ones(7), **ends)
    np.testing.assert_array_equal(store.column("episode_start"), [1, 0, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(store.acted, [1, 1, 0, 1, 1, 1, 0])
    assert not (store.column("terminated") | store.column("truncated")).any()
    np.testing.assert_array_equal(store.column("action")[store.acted], action[store.acted])
    np.testing.assert_array_equal(store.column("reward"), store.acted)
    assert store.action_space == spaces.Box(-np.inf, np.inf, (2,), np.float32)


@pytest.mark.parametrize(
    ("source", "change", "message"),
    [
        (CHW / 2 - 9, {}, r"the array holds float64: they range over -9\.\.118\.5, rescale them to 0\.\.255 first"),
        (CHW.astype(str), {}, "the array holds <U3: give numbers"),
        (CHW[0, 0], {}, r"has shape \(8, 6\): reshape it"),
        (CHW[:0], {}, r"has shape \(0, 3, 8, 6\)"),
        (CHW, {"action": np.zeros(6, int)}, r"column 'action' of the array has shape \(6,\): expected 7 rows"),
        (CHW, {"reward": 1.0}, r"column 'reward' of the array has shape \(\): expected 7 rows"),
        (CHW, {"action": ["up"] * 7}, "the actions of the array are <U2"),
        (CHW, {"action": [0.5] * 7, "action_space": spaces.Discrete(3)}, "the actions of the array are float64"),
        (CHW, {"action": [5, 0, 0, 0, 0, 0, -1], "action_space": spaces.Discrete(3)}, r"must lie in -1\.\.2"),
        (CHW, {**KNOWN, "episode_start": np.roll(START, 1)}, "first row of the array must begin an episode"),
        (CHW, {**KNOWN, "episode_start": np.arange(7) == 0}, "complete episodes"),
        (CHW, {"key": "frames"}, "the array is no .npz file, so there is no array 'frames'"),
        (Path("nowhere.npy"), {}, r"nowhere\.npy cannot be read .*No such file"),
        (Path(__file__), {}, r"test_data_files\.py cannot be read as a \.npy or \.npz file"),
    ],
)
@pytest.mark.filterwarnings("ignore:the frame after the last action")
def test_bad_arrays(tmp_path: Path, source: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RlpreError, match=message):
        rlpre.from_arrays(source, tmp_path / "s", **change)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "frames", [CHW / np.float32(255), CHW.astype(float), CHW.astype(np.int64), CHW * np.uint16(257), CHW > 127]
)
def test_the_advice_how_to_convert_frames_works(tmp_path: Path, frames: np.ndarray) -> None:
    with pytest.raises(RlpreError, match=f"holds {frames.dtype}: convert them by ") as error:
        rlpre.from_arrays(frames, tmp_path / "s")
    converted = eval(str(error.value).rpartition(" by ")[2], {"np": np, "frames": frames})
    expected = 255 * (CHW > 127) if frames.dtype == bool else CHW
    np.testing.assert_array_equal(everything(rlpre.from_arrays(converted, tmp_path / "s")), expected)


ACTION, DONE = np.array([2, 0, 1, 3, 0, 1, 2]), np.array([0, 0, 1, 0, 0, 0, 1], bool)


@pytest.mark.parametrize(
    ("arrays", "left_out"),
    [
        ({"observations": HWC, "actions": ACTION, "terminals": DONE, "timeouts": 0 * DONE, "info/a": DONE}, "info/a"),
        ({"obs": HWC, "acts": ACTION, "dones": DONE, "next_obs": HWC, "infos": np.array([{}] * 7)}, "infos, next_obs"),
        (
            {"obs": HWC, "actions": ACTION[:, None], "episode_starts": np.roll(DONE, 1)[:, None], "returns": DONE},
            "returns",
        ),
        ({"pixels": HWC, "observations": HWC / 9, "action": ACTION, "terminated": DONE, "dones": DONE}, "dones, obs"),
    ],
    ids=["D4RL", "imitation", "Stable-Baselines 2", "mixed"],
)
@pytest.mark.filterwarnings("ignore:the frame after the last action")
def test_the_names_of_other_libraries(tmp_path: Path, arrays: dict[str, np.ndarray], left_out: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.warns(UserWarning, match=f"arrays {left_out}.* are left out"):
        store = rlpre.from_arrays(tmp_path / "data.npz", tmp_path / "s")
    np.testing.assert_array_equal(everything(store), CHW)
    assert store.action_space == spaces.Discrete(4)
    np.testing.assert_array_equal(store.column("action"), np.where(DONE, -1, ACTION))
    np.testing.assert_array_equal(store.episode, [0, 0, 0, 1, 1, 1, 1])


def test_damaged_archives(tmp_path: Path) -> None:
    np.savez(archive := tmp_path / "all.npz", frames=CHW.repeat(100, axis=0))
    content = archive.read_bytes()
    (cut := tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    (flipped := tmp_path / "flipped.npz").write_bytes(
        content[:50_000] + bytes([content[50_000] ^ 1]) + content[50_001:]
    )
    for path, message in ((cut, "File is not a zip file"), (flipped, "Bad CRC-32 for file 'frames.npy'")):
        with pytest.raises(RlpreError, match=rf"{path.name} cannot be read as a .npy or .npz file \({message}"):
            rlpre.from_arrays(path, tmp_path / "s")
    assert {path.name for path in tmp_path.iterdir()} == {"all.npz", "cut.npz", "flipped.npz"}


MEMORY = """
import re, resource, sys
from pathlib import Path
import rlpre, rlpre.data.store
rlpre.data.store.SHARD_BYTES = 2**23
used = int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 60 * 2**20,) * 2)
print(len(rlpre.from_arrays(sys.argv[1], sys.argv[2])))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux's")
def test_large_files_need_little_memory(tmp_path: Path) -> None:
    frames = np.zeros((100_000, 1, 32, 32), np.uint8)  # 98 MiB, of which 8 make a shard
    frames[:, 0, 0, 0] = np.arange(100_000) % 251
    action = np.tile(np.arange(999, -1, -1), 100) - 1
    np.savez(tmp_path / "frames.npz", frames=frames, action=action)
    command = [sys.executable, "-c", MEMORY, tmp_path / "frames.npz", tmp_path / "s"]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert answer.returncode == 0, answer.stderr
    assert int(answer.stdout) == len(frames)
    np.testing.assert_array_equal(FrameStore.open(tmp_path / "s").frames([99_999]), frames[-1:])
