"""What does an encoder know? ``python scripts/diagnose.py runs/encoders/a --frames runs/frames/doorkey``."""

from pathlib import Path

import tyro

from cli import run
from rlpre import Encoder, FrameStore, RlpreError, SequenceEncoder
from rlpre.encoders.encoder import CONFIG
from rlpre.evaluation.diagnose import diagnose, write_diagnosis
from rlpre.utils import read_json


def main(
    encoder: tyro.conf.Positional[Path],
    frames: Path | None = None,
    pretrained_on: Path | None = None,
    out: Path = Path("runs/diagnosis"),
) -> None:
    """Measures an encoder: labels that it predicts, dimensions, collapse, invariances, overlap with the target.

    Args:
        encoder: directory of an encoder of frames or of sequences.
        frames: a store of the target with labels, see collect.py, to measure on; default: only what the checkpoint says
            is shown.
        pretrained_on: the store of its pretraining, which is compared with the target.
        out: receives report.html, diagnosis.png and diagnosis.json.
    """
    if pretrained_on and not frames:
        raise RlpreError("--pretrained-on is compared with frames of a target: give --frames too")
    kinds = {kind.kind: kind for kind in (Encoder, SequenceEncoder)}
    loaded = kinds[read_json(encoder / CONFIG).get("kind", Encoder.kind)].load(encoder).eval()
    target, source = (FrameStore.open(path) if path else None for path in (frames, pretrained_on))
    found = diagnose(loaded, target, source) if target else None
    print(write_diagnosis(loaded, encoder, out, found, target, source))
    print(f"\npage: {out}/report.html   numbers: {out}/diagnosis.json")


if __name__ == "__main__":
    run(main)
