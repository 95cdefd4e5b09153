"""What is this encoder good for? ``python scripts/diagnose.py runs/encoders/a --frames runs/frames/doorkey``.

What it knows, in how few dimensions, whether it collapsed, what it was trained on and has seen of the target, what it
ignores, and whether to freeze, anchor or fine-tune it, or to start from scratch.
"""

from pathlib import Path

import tyro

from cli import run
from rlpre import Encoder, FrameStore, RlpreError, SequenceEncoder
from rlpre.encoders.checkpoint import CONFIG
from rlpre.files import read_json
from rlpre.measure.diagnosis import diagnose_encoder
from rlpre.report.diagnosis.report import write_diagnosis


def main(
    encoder: tyro.conf.Positional[Path],
    frames: Path | None = None,
    pretrained_on: Path | None = None,
    out: Path = Path("runs/diagnosis"),
) -> None:
    """Diagnoses an encoder and advises how to use it.

    Args:
        encoder: directory of an encoder of frames or of sequences.
        frames: a store of the target with labels, see collect.py: what is measured is measured on it; default: only
            what the checkpoint says is shown.
        pretrained_on: the store that it was pretrained on, which says what it has seen of the target.
        out: receives report.html, diagnosis.png and diagnosis.json.
    """
    if pretrained_on and not frames:
        raise RlpreError("--pretrained-on is compared with frames of a target: give --frames too")
    kinds = {of.kind: of for of in (Encoder, SequenceEncoder)}
    patient = kinds[read_json(encoder / CONFIG).get("kind", Encoder.kind)].load(encoder).eval()
    target, source = (FrameStore.open(path) if path else None for path in (frames, pretrained_on))
    found = diagnose_encoder(patient, target, source) if target else None
    print(write_diagnosis(patient, encoder, out, found, target, source))
    print(f"\npage: {out}/report.html   figures: {out}/diagnosis.json")


if __name__ == "__main__":
    run(main)
