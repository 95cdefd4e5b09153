"""What TensorBoard is given of a comparison, read back as TensorBoard reads it."""

import pytest
from studies import METRIC, NEVER, STEPS, results_of, write_study
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG
from tensorboard.plugins.hparams import metadata, plugin_data_pb2

from rlpre.report.comparison.board import log_comparison


def read(path) -> EventAccumulator:
    return EventAccumulator(str(path)).Reload()


@pytest.fixture
def board(tmp_path):
    for env in ("MiniGrid-Door-v0", "Bench/Key"):
        write_study(tmp_path, {"scratch": [8000, 9000, NEVER], "jigsaw": [5000], "best": [2000, 3000, 4000]}, env=env)
    for _ in range(2):  # a second report replaces the first
        log_comparison(results_of(tmp_path), METRIC, tmp_path / "compare")
    return tmp_path / "compare"


def test_layout_has_a_band_for_every_environment_whose_tags_exist(board):
    (event,) = read(board / "scratch").Tensors(CONFIG_SUMMARY_TAG)
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert {category.title for category in layout.category} == {"Door", "Key"}
    tags = read(board / "best").Tags()["scalars"]
    for category in layout.category:
        (chart,) = category.chart
        (series,) = chart.margin.series
        assert {series.value, series.lower, series.upper} <= set(tags)
        assert (series.lower, series.upper) == (f"{series.value}_low", f"{series.value}_high")
    assert CONFIG_SUMMARY_TAG not in read(board / "best").Tags()["tensors"]  # one run's layout is enough


def test_curves_are_those_of_the_results(board):
    curve = results_of(board.parent)["Bench/Key"]["best"].curve
    for tag, field in (("return", "value"), ("return_low", "low"), ("return_high", "high")):
        scalars = read(board / "best").Scalars(f"compare/Bench/Key/{tag}")
        assert [event.step for event in scalars] == STEPS.tolist()
        assert [event.value for event in scalars] == pytest.approx([getattr(point, field) for point in curve])
    assert read(board / "jigsaw").Tags()["scalars"] == ["compare/Bench/Key/return", "compare/MiniGrid-Door-v0/return"]


def test_every_run_has_its_settings_and_ends(board):
    events = read(board / "hparams" / "MiniGrid-Door-v0" / "scratch" / "seed-2")
    content = events.PluginTagToContent(metadata.PLUGIN_NAME)[metadata.SESSION_START_INFO_TAG]
    settings = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert {name: value.string_value or value.number_value for name, value in settings.items()} == {
        "environment": "MiniGrid-Door-v0",
        "arm": "scratch",
        "seed": 2,
        "offline_frames": 0,
    }
    found = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    assert found == pytest.approx(
        {"final/area": 0.2, "final/return": 0.2, "final/steps_to_threshold": 10_000, "final/reached": 0}
    )
    assert len(list((board / "hparams").rglob("seed-*"))) == 14
